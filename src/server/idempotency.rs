//! Requests that were answered, so that asking again changes nothing.
//!
//! An entry lives as long as its commit's record is kept, restarts included: the log carries it.

use crate::{api::Receipt, commit_log::Commit, database::types::Digest};
use std::collections::{HashMap, VecDeque};

/// Entries remembered; with more, requests that carry a key are answered `busy`.
pub const ENTRIES_MAX: usize = 262_144;

/// What is known of an idempotency key.
#[derive(Clone, Debug)]
pub enum Known {
    /// Never seen.
    New,
    /// The same request, already committed.
    Answered(Receipt),
    /// Another request used the key.
    Mismatch,
}

/// The keys of all commits kept.
#[derive(Default)]
pub struct Idempotency {
    entries: HashMap<Vec<u8>, (Digest, Receipt)>,
    order: VecDeque<(u64, Vec<u8>)>,
}

impl Idempotency {
    /// Remembers the entries of `commit`.
    pub fn remember(&mut self, commit: &Commit) {
        let state = commit.state();
        let receipt = Receipt { size: state.size, root: state.root, sequence: commit.sequence() };
        for entry in &commit.idempotency {
            self.order.push_back((receipt.sequence, entry.key.clone()));
            self.entries.insert(entry.key.clone(), (entry.body, receipt.clone()));
        }
    }

    /// Forgets the entries of commits before `first`.
    pub fn forget_before(&mut self, first: u64) {
        while let Some((sequence, _)) = self.order.front() {
            if *sequence >= first {
                return;
            }
            if let Some((_, key)) = self.order.pop_front() {
                self.entries.remove(&key);
            }
        }
    }

    /// What is known of `key`, used with a request of digest `body`.
    pub fn look_up(&self, key: &[u8], body: Digest) -> Known {
        match self.entries.get(key) {
            None => Known::New,
            Some((known, receipt)) if *known == body => Known::Answered(receipt.clone()),
            Some(_) => Known::Mismatch,
        }
    }

    /// Number of entries.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Whether no further entry may be remembered.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= ENTRIES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_full_at_its_bound_and_forgets_with_the_log() {
        let mut known = Idempotency::default();
        for n in 0..ENTRIES_MAX as u64 {
            assert!(!known.is_full());
            let receipt = Receipt { size: n, root: Digest([0; 32]), sequence: n };
            let key = n.to_be_bytes().to_vec();
            known.order.push_back((n, key.clone()));
            known.entries.insert(key, (Digest([1; 32]), receipt));
        }
        assert!(known.is_full());
        known.forget_before(10);
        assert_eq!(known.count(), ENTRIES_MAX - 10);
        assert!(matches!(known.look_up(&9u64.to_be_bytes(), Digest([1; 32])), Known::New));
        assert!(matches!(known.look_up(&10u64.to_be_bytes(), Digest([1; 32])), Known::Answered(_)));
        assert!(matches!(known.look_up(&10u64.to_be_bytes(), Digest([2; 32])), Known::Mismatch));
    }
}
