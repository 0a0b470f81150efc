//! Family `keyless`: an append-only log of values of variable size, read by location.
//!
//! The floor stays at 0. A location is all that names an entry, so an entry below the floor would
//! be one that a new replica never gets and that nobody can prove to it: a log whose beginning
//! is gone. Nothing here becomes inactive by itself, as it does where a key is overwritten, so
//! there is nothing else that a floor could be derived from; and at 0 the log's proofs have no
//! inactive peaks to agree about. The price is that entries are never pruned.

use super::{
    Entries, Error, Fetcher, LogEntry, OpenAt, Operation, State, StateSync, SyncError, family,
    record::Record,
    storage::{self, Location, Merkle, Strategy},
    store::{Store, forward_to_full_library, forward_to_library, open_and_sync},
    types::{Change, Family},
};
use crate::runtime::Runtime;
use bytes::Bytes;
use commonware_cryptography::Hasher;
use commonware_runtime::Handle;
use commonware_storage::qmdb::{
    any::value::VariableEncoding,
    keyless::{batch::MerkleizedBatch, variable as keyless},
};
use std::{num::NonZeroUsize, sync::Arc};

/// Every entry stays active.
pub(super) const FLOOR: Location = Location::new(0);
/// Operations read at a time: what one read may take of memory beyond what is returned.
const READ_OPERATIONS: u64 = 64;
/// Operations looked at for one page, so that a run of empty commits ends.
pub const SCAN_OPERATIONS_MAX: u64 = 4096;

type Db<E, H> = keyless::Db<Merkle, E, Record, H, Strategy>;
pub(super) type Op = keyless::Operation<Merkle, Record>;
type Batch<H> = MerkleizedBatch<Merkle, <H as Hasher>::Digest, VariableEncoding<Record>, Strategy>;

/// An open database of family `keyless`.
pub(super) struct Keyless<E: Runtime, H: Hasher>(Db<E, H>);

/// Where and how a database of `generation` is kept.
fn config(generation: u64) -> keyless::Config<(), Strategy> {
    let (merkle, log) = storage::configs(Family::Keyless, generation);
    keyless::Config { merkle, log }
}

open_and_sync!(Keyless);

/// The record that a change appends.
pub(super) fn addition(change: &Change) -> Result<Record, Error> {
    match change {
        Change::Append { value } => Ok(Record::Value(Bytes::copy_from_slice(value))),
        Change::Put { .. } | Change::Delete { .. } => {
            Err(Error::Unsupported("family 'keyless' has no keys"))
        }
    }
}

/// What an operation of the library says.
pub(super) fn plain(operation: Op) -> Result<Operation, Error> {
    use commonware_storage::qmdb::keyless::Operation as Keyless;
    match operation {
        Keyless::Append(Record::Value(value)) => Ok(Operation::Append { value }),
        Keyless::Append(_) => Err(Error::Corrupt("no value in an entry".into())),
        Keyless::Commit(record, _) => family::commit(record),
    }
}

/// The value at a location, which the library gives with commits and entries alike; `None` where
/// a commit stands.
fn value(record: Option<Record>) -> Result<Option<Bytes>, Error> {
    match record {
        Some(Record::Value(value)) => Ok(Some(value)),
        Some(Record::Commit(_)) | None => Ok(None),
        Some(Record::Entry { .. }) => Err(Error::Corrupt("a key in a log of values".into())),
    }
}

impl<E: Runtime, H: Hasher> Store for Keyless<E, H> {
    type Hasher = H;
    type Source = Db<E, H>;
    type Batch = Batch<H>;

    forward_to_library!();
    forward_to_full_library!();

    fn state(&self) -> State {
        family::state::<H>(self.0.bounds().end, self.0.sync_boundary(), &self.0.root())
    }

    async fn record(&self, _: &H::Digest) -> Result<Option<Record>, Error> {
        Err(Error::Unsupported("family 'keyless' has no keys"))
    }

    async fn batch(
        &self,
        parent: Option<Arc<Batch<H>>>,
        changes: &[Change],
        metadata: Record,
    ) -> Result<(State, Arc<Batch<H>>), Error> {
        let mut batch = match &parent {
            Some(parent) => parent.new_batch::<H>(),
            None => self.0.new_batch(),
        };
        for change in changes {
            batch = batch.append(addition(change)?);
        }
        let batch = batch.merkleize(&self.0, Some(metadata), FLOOR).await?;
        Ok((family::tip::<H>(batch.bounds()), batch))
    }

    fn plain(operation: Op) -> Result<Operation, Error> {
        plain(operation)
    }

    async fn entries(
        &self,
        from: u64,
        count_max: NonZeroUsize,
        bytes_max: usize,
    ) -> Result<Entries, Error> {
        let size = *self.0.bounds().end;
        if from > size {
            return Err(Error::OutOfRange(format!("location {from} of {size}")));
        }
        let end = size.min(from.saturating_add(SCAN_OPERATIONS_MAX));
        let mut page = Entries { entries: Vec::new(), next: from };
        let mut bytes = 0;
        while page.next < end {
            let locations: Vec<_> =
                (page.next..end.min(page.next + READ_OPERATIONS)).map(Location::new).collect();
            for record in self.0.get_many(&locations).await? {
                if let Some(value) = value(record)? {
                    bytes += value.len();
                    let full = page.entries.len() == count_max.get() || bytes > bytes_max;
                    // One entry is given whatever its size, so that readers get on.
                    if full && !page.entries.is_empty() {
                        return Ok(page);
                    }
                    page.entries.push(LogEntry { location: page.next, value });
                }
                page.next += 1;
            }
        }
        Ok(page)
    }
}
