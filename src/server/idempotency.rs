//! Requests that were answered, so that asking again changes nothing.
//!
//! An entry lives as long as its commit's record is kept, restarts included: the log carries it. A new epoch begins a new
//! log, so [`CarriedKeys`] keeps the entries of the old one, until the new log's first record is trimmed.

use crate::{
    commit_log::Commit,
    database::types::{DatabaseId, Digest, IDEMPOTENCY_KEY_LENGTH_MAX, Root},
    documents::Receipt,
    runtime::Runtime,
    storage_record::{self, Error, Records},
};
use commonware_codec::{
    Buf, EncodeSize, Error as CodecError, FixedSize as _, RangeCfg, Read, ReadExt as _, Write,
};
use commonware_runtime::BufMut;
use commonware_utils::sequence::U64;
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
    /// First sequence of the epoch, while entries of the one before are remembered.
    carried: Option<u64>,
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

    /// Remembers what was carried over into the epoch of `database`. Before any commit of the epoch.
    pub fn carry<E: Runtime>(&mut self, keys: &CarriedKeys<E>, database: DatabaseId) {
        for chunk in keys.0.values().values().filter(|chunk| chunk.database == database) {
            self.carried = Some(chunk.first);
            for (key, body, receipt) in &chunk.entries {
                // The records that they were in are gone; they go with the first of the epoch.
                self.order.push_back((chunk.first, key.clone()));
                self.entries.insert(key.clone(), (*body, receipt.clone()));
            }
        }
    }

    /// Whether everything that was carried over is forgotten; true once.
    pub fn carried_expired(&mut self, first: u64) -> bool {
        self.carried.take_if(|carried| *carried < first).is_some()
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

/// Partition of what a new epoch carried over.
pub const CARRIED_PARTITION: &str = "carried-idempotency-keys";
/// Entries in one record.
const CHUNK_ENTRIES: usize = 4_096;

/// Some entries that were carried over.
#[derive(Clone, Debug)]
struct Chunk {
    /// The database that they were carried into.
    database: DatabaseId,
    /// Sequence of the epoch's first record.
    first: u64,
    entries: Vec<(Vec<u8>, Digest, Receipt)>,
}

impl Write for Chunk {
    fn write(&self, buf: &mut impl BufMut) {
        self.database.write(buf);
        self.first.write(buf);
        self.entries.len().write(buf);
        for (key, body, receipt) in &self.entries {
            key.as_slice().write(buf);
            body.write(buf);
            receipt.size.write(buf);
            receipt.root.write(buf);
            receipt.sequence.write(buf);
        }
    }
}

impl EncodeSize for Chunk {
    fn encode_size(&self) -> usize {
        let entry =
            |key: &Vec<u8>| key.as_slice().encode_size() + Digest::SIZE + 8 + Root::SIZE + 8;
        let entries: usize = self.entries.iter().map(|(key, ..)| entry(key)).sum();
        DatabaseId::SIZE + 8 + self.entries.len().encode_size() + entries
    }
}

impl Read for Chunk {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        let (database, first) = (DatabaseId::read(buf)?, u64::read(buf)?);
        let count = usize::read_cfg(buf, &RangeCfg::new(0..=CHUNK_ENTRIES))?;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let range = RangeCfg::new(1..=IDEMPOTENCY_KEY_LENGTH_MAX);
            let key = Vec::read_cfg(buf, &(range, ()))?;
            let body = Digest::read(buf)?;
            let (size, root) = (u64::read(buf)?, Root::read(buf)?);
            entries.push((key, body, Receipt { size, root, sequence: u64::read(buf)? }));
        }
        Ok(Self { database, first, entries })
    }
}

/// What a new epoch carried over, on disk.
pub struct CarriedKeys<E: Runtime>(Records<E, U64, Chunk>);

impl<E: Runtime> CarriedKeys<E> {
    /// Opens it. Makes nothing.
    pub async fn open(context: E) -> Result<Self, Error> {
        Ok(Self(Records::open(context, CARRIED_PARTITION).await?))
    }

    /// Keeps the entries of `known` for the epoch of `database`, whose first record is `first`. Durable on return.
    pub async fn keep(
        &mut self,
        known: &Idempotency,
        database: DatabaseId,
        first: u64,
    ) -> Result<(), Error> {
        let entry = |(_, key): &(u64, Vec<u8>)| {
            let (body, receipt) = known.entries.get(key)?;
            Some((key.clone(), *body, receipt.clone()))
        };
        let entries: Vec<_> = known.order.iter().filter_map(entry).collect();
        let chunks = entries.chunks(CHUNK_ENTRIES).enumerate().map(|(index, entries)| {
            (U64::new(index as u64), Chunk { database, first, entries: entries.to_vec() })
        });
        self.0.update(|records| *records = chunks.collect()).await
    }

    /// Whether it was carried into another epoch than that of `database`: left by a new epoch that was interrupted.
    pub fn is_stale(&self, database: DatabaseId) -> bool {
        self.0.is_written() && self.0.values().values().all(|chunk| chunk.database != database)
    }

    /// Removes it, if there is any.
    pub async fn remove(context: &E) -> Result<(), Error> {
        storage_record::remove_partition(context, CARRIED_PARTITION).await
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
