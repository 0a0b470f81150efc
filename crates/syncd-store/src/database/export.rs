//! Reads one consistent state out of a database that goes on changing.
//!
//! The families here have no iterator. What a state holds is what its operations add up to: the
//! log is paged through at a fixed size, newest first, and the first operation seen of a key
//! decides. Operations of that state stay readable as long as nothing above its floor is pruned.

use super::{
    Database, Error, Operation,
    types::{Digest, Family},
};
use commonware_utils::sync::AsyncRwLock;
use std::{
    collections::HashSet,
    num::{NonZeroU64, NonZeroUsize},
    sync::Arc,
};
use syncd_proto::database::{Entry, Name};

/// Most operations read at a time.
pub const PAGE_OPERATIONS: u64 = 512;
/// Fewest operations read at a time, however large they are.
const PAGE_OPERATIONS_MIN: u64 = 16;
/// Bytes of keys and values that a page should have at most.
const PAGE_BYTES: usize = 1024 * 1024;

/// An export of the state of one size. Remembers 16 bytes for each key it has seen.
pub struct Exporter {
    database: Arc<AsyncRwLock<Box<dyn Database>>>,
    size: u64,
    floor: u64,
    /// Of keys: what lies at and above was read. Of a log of values: what lies below.
    position: u64,
    /// Operations of the next page of keys; fewer where they are large.
    step: u64,
    is_log: bool,
    seen: HashSet<u128>,
}

impl Exporter {
    /// Begins an export of the state of `size` operations whose floor is `floor`, of a database of
    /// `family`.
    pub fn new(
        database: Arc<AsyncRwLock<Box<dyn Database>>>,
        family: Family,
        size: u64,
        floor: u64,
    ) -> Self {
        let is_log = family == Family::Keyless;
        let position = if is_log { floor } else { size };
        let (step, seen) = (PAGE_OPERATIONS_MIN, HashSet::new());
        Self { database, size, floor, position, step, is_log, seen }
    }

    /// Operations of the state.
    pub const fn operations(&self) -> u64 {
        self.size - self.floor
    }

    /// The next entries: of keys in no particular order, of a log of values as they were appended;
    /// `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<Entry>>, Error> {
        if self.is_log {
            return self.next_of_log().await;
        }
        if self.position <= self.floor {
            return Ok(None);
        }
        let start = self.position.saturating_sub(self.step).max(self.floor);
        let operations = self.read(start, self.position).await?;
        self.position = start;
        // As large as the bytes of this page allow for the next.
        let bytes: usize = operations.iter().map(bytes_of).sum();
        self.step = if bytes > PAGE_BYTES / 2 { self.step / 2 } else { self.step * 2 };
        self.step = self.step.clamp(PAGE_OPERATIONS_MIN, PAGE_OPERATIONS);
        Ok(Some(
            operations.into_iter().rev().filter_map(|operation| self.entry(operation)).collect(),
        ))
    }

    async fn next_of_log(&mut self) -> Result<Option<Vec<Entry>>, Error> {
        if self.position >= self.size {
            return Ok(None);
        }
        let count = NonZeroUsize::new(PAGE_OPERATIONS as usize).unwrap_or(NonZeroUsize::MIN);
        let page = self.database.read().await.entries(self.position, count, PAGE_BYTES).await?;
        self.position = page.next;
        let held = page.entries.into_iter().filter(|entry| entry.location < self.size);
        let named =
            held.map(|entry| Entry { name: Name::Location(entry.location), value: entry.value });
        Ok(Some(named.collect()))
    }

    /// The operations from `start` to `end`.
    async fn read(&self, start: u64, end: u64) -> Result<Vec<Operation>, Error> {
        let database = self.database.read().await;
        let mut operations = Vec::new();
        let mut from = start;
        while let Some(count) = NonZeroU64::new(end - from) {
            let page = database.operations(self.size, from, count).await?;
            from += page.len() as u64;
            operations.extend(page);
        }
        Ok(operations)
    }

    fn entry(&mut self, operation: Operation) -> Option<Entry> {
        match operation {
            Operation::Put { hash, key, value } => {
                self.seen.insert(short(hash)).then_some(Entry { name: Name::Key(key), value })
            }
            Operation::Delete { hash } => {
                self.seen.insert(short(hash));
                None
            }
            Operation::Append { .. } | Operation::Commit(_) => None,
        }
    }
}

fn bytes_of(operation: &Operation) -> usize {
    match operation {
        Operation::Put { key, value, .. } => key.len() + value.len(),
        Operation::Append { value } => value.len(),
        Operation::Delete { .. } | Operation::Commit(_) => 0,
    }
}

/// Half of a key's hash: enough to tell keys apart, half the memory.
fn short(hash: Digest) -> u128 {
    u128::from_be_bytes(std::array::from_fn(|i| hash.0[i]))
}
