//! Reads one consistent state out of a database that goes on changing.
//!
//! The families here have no iterator. What a state holds is what its operations add up to: the
//! log is paged through at a fixed size, newest first, and the first operation seen of a key
//! decides. Operations of that state stay readable as long as nothing above its floor is pruned.

use super::{Database, Error, Operation, types::Digest};
use crate::api::Entry;
use commonware_utils::sync::AsyncRwLock;
use std::{collections::HashSet, num::NonZeroU64, sync::Arc};

/// Operations read at a time.
pub const PAGE_OPERATIONS: u64 = 512;

/// An export of the state of one size. Remembers 16 bytes for each key it has seen.
pub struct Exporter {
    database: Arc<AsyncRwLock<Box<dyn Database>>>,
    size: u64,
    floor: u64,
    /// Operations at and above this location were read.
    position: u64,
    seen: HashSet<u128>,
}

impl Exporter {
    /// Begins an export of the state of `size` operations whose floor is `floor`.
    pub fn new(database: Arc<AsyncRwLock<Box<dyn Database>>>, size: u64, floor: u64) -> Self {
        Self { database, size, floor, position: size, seen: HashSet::new() }
    }

    /// The next entries, in no particular order; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<Entry>>, Error> {
        if self.position <= self.floor {
            return Ok(None);
        }
        let start = self.position.saturating_sub(PAGE_OPERATIONS).max(self.floor);
        let operations = self.read(start).await?;
        self.position = start;
        operations
            .into_iter()
            .rev()
            .filter_map(|operation| self.entry(operation).transpose())
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// The operations from `start` to the position.
    async fn read(&self, start: u64) -> Result<Vec<Operation>, Error> {
        let database = self.database.read().await;
        let mut operations = Vec::new();
        let mut from = start;
        while let Some(count) = NonZeroU64::new(self.position - from) {
            let page = database.operations(self.size, from, count).await?;
            from += page.len() as u64;
            operations.extend(page);
        }
        Ok(operations)
    }

    fn entry(&mut self, operation: Operation) -> Result<Option<Entry>, Error> {
        match operation {
            Operation::Put { hash, key, value } => {
                Ok(self.seen.insert(short(hash)).then_some(Entry { key, value }))
            }
            Operation::Delete { hash } => {
                self.seen.insert(short(hash));
                Ok(None)
            }
            Operation::Append { .. } => {
                Err(Error::Unsupported("a log of values is read by location"))
            }
            Operation::Commit(_) => Ok(None),
        }
    }
}

/// Half of a key's hash: enough to tell keys apart, half the memory.
fn short(hash: Digest) -> u128 {
    u128::from_be_bytes(std::array::from_fn(|i| hash.0[i]))
}
