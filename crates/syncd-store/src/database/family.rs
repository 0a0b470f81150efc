//! What every family does the same way.

use super::{
    Error, Fetch, Fetcher, Operation, Prepared, Served, State, StateSync, SyncError,
    record::{CommitMetadata, Record},
    source::{Adapter, to_request, to_sync_error, to_target},
    storage::{Location, Merkle},
    types::Change,
};
use crate::runtime::Runtime;
use bytes::Bytes;
use commonware_codec::{Encode, EncodeSize, Read};
use commonware_cryptography::Hasher;
use commonware_storage::{
    merkle,
    qmdb::{
        self,
        chain::Bounds,
        sync::{
            self,
            source::{Response, Source},
        },
    },
};
use commonware_utils::sync::Mutex;
use std::{collections::HashMap, future::Future, num::NonZeroU64, sync::Arc};
use syncd_proto::hash::to_plain;

/// The library's handle, which a mutation takes and only a successful one gives back.
pub(super) struct Slot<D>(Option<D>);

impl<D> Slot<D> {
    pub(super) const fn new(database: D) -> Self {
        Self(Some(database))
    }

    /// The handle, for reading.
    pub(super) fn get(&self) -> Result<&D, Error> {
        self.0.as_ref().ok_or(Error::Poisoned)
    }

    /// Runs a mutation. If it fails, or its future is dropped, the slot stays empty.
    pub(super) async fn mutate<T, X, F>(
        &mut self,
        mutation: impl FnOnce(D) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<(D, T), X>>,
        Error: From<X>,
    {
        let database = self.0.take().ok_or(Error::Poisoned)?;
        let (database, output) = mutation(database).await?;
        self.0 = Some(database);
        Ok(output)
    }
}

/// Operations of one block, whose sizes are measured together. Reading one holds at most so many
/// of the largest operations.
const BLOCK_OPERATIONS: u64 = 128;

/// What blocks of operations take when they are encoded: the log does not tell, and operations
/// have very different sizes. Operations never change, so a block is measured once.
#[derive(Default)]
pub(super) struct Sizes(Mutex<HashMap<u64, usize>>);

/// Blocks whose sizes are remembered: those of 8 million operations, in about 2 MB. Beyond, they are measured again.
const BLOCKS_MAX: usize = 1 << 16;

impl Sizes {
    fn remember(&self, block: u64, bytes: usize) {
        let mut known = self.0.lock();
        if known.len() >= BLOCKS_MAX {
            known.clear();
        }
        known.insert(block, bytes);
    }
}

/// Answers `fetch` from `source` in at most about `bytes_max` bytes, without reading many more.
pub(super) async fn serve<S>(
    source: &S,
    sizes: &Sizes,
    fetch: Fetch,
    bytes_max: usize,
) -> Result<Served, Error>
where
    S: Source<Family = Merkle, Error = qmdb::Error<Merkle>, Op: Encode>,
{
    let fetch = match fetch {
        Fetch::Operations { size, start, max } => {
            let max = fitting(source, sizes, size, start, max, bytes_max).await?;
            Fetch::Operations { size, start, max }
        }
        Fetch::Boundary { .. } => fetch,
    };
    let (response, _) = source.serve(to_request(fetch)).await?;
    let operations = match &response {
        Response::Operations { operations, .. } => operations.len() as u64,
        Response::Boundary { .. } => 1,
    };
    Ok(Served { body: response.encode(), operations })
}

/// How many of the `max` operations from `start` fit into `bytes_max`; at least one.
async fn fitting<S>(
    source: &S,
    sizes: &Sizes,
    size: u64,
    start: u64,
    max: NonZeroU64,
    bytes_max: usize,
) -> Result<NonZeroU64, Error>
where
    S: Source<Family = Merkle, Error = qmdb::Error<Merkle>, Op: Encode>,
{
    let end = size.min(start.saturating_add(max.get()));
    let (mut next, mut bytes) = (start, 0);
    while next < end {
        let block = next / BLOCK_OPERATIONS;
        let block_end = (block + 1) * BLOCK_OPERATIONS;
        // The whole block's size is used for a part of it, too: that is on the safe side.
        let known = sizes.0.lock().get(&block).copied();
        if let Some(known) = known
            && bytes + known <= bytes_max
        {
            (next, bytes) = (block_end, bytes + known);
            continue;
        }
        if known.is_some() && next > start {
            break;
        }
        let lengths = lengths(source, size, next, block_end.min(size) - next).await?;
        let all: usize = lengths.iter().sum();
        if next == block * BLOCK_OPERATIONS && block_end <= size {
            sizes.remember(block, all);
        }
        if bytes + all > bytes_max {
            for length in lengths {
                bytes += length;
                if bytes > bytes_max {
                    break;
                }
                next += 1;
            }
            break;
        }
        (next, bytes) = (block_end, bytes + all);
    }
    Ok(NonZeroU64::new(next.min(end).saturating_sub(start)).unwrap_or(NonZeroU64::MIN))
}

/// Encoded lengths of at most a block of operations.
async fn lengths<S>(source: &S, size: u64, start: u64, count: u64) -> Result<Vec<usize>, Error>
where
    S: Source<Family = Merkle, Error = qmdb::Error<Merkle>, Op: Encode>,
{
    let max = NonZeroU64::new(count).unwrap_or(NonZeroU64::MIN);
    let (response, _) = source.serve(to_request(Fetch::Operations { size, start, max })).await?;
    Ok(match &response {
        Response::Operations { operations, .. } => {
            operations.iter().map(EncodeSize::encode_size).collect()
        }
        Response::Boundary { op, .. } => vec![op.encode_size()],
    })
}

/// Reads operations through `source` (with a proof that is not needed: the log itself has no
/// public reader).
pub(super) async fn operations<S>(
    source: &S,
    size: u64,
    start: u64,
    max: NonZeroU64,
    plain: impl Fn(S::Op) -> Result<Operation, Error>,
) -> Result<Vec<Operation>, Error>
where
    S: Source<Family = Merkle, Error = qmdb::Error<Merkle>>,
{
    let (response, _) = source.serve(to_request(Fetch::Operations { size, start, max })).await?;
    match response {
        Response::Operations { operations, .. } => operations.into_iter().map(plain).collect(),
        Response::Boundary { .. } => {
            Err(Error::Corrupt("a boundary where operations were asked".into()))
        }
    }
}

impl<F: merkle::Family> From<merkle::Error<F>> for Error {
    fn from(error: merkle::Error<F>) -> Self {
        qmdb::Error::from(error).into()
    }
}

/// The state after a batch of a family that has one root.
pub(super) fn tip<H: Hasher>(bounds: &Bounds<Merkle, H::Digest>) -> State {
    let root = to_plain::<H>(&bounds.tip.root);
    State { size: *bounds.tip.size, floor: *bounds.inactivity_floor, root, operations_root: root }
}

/// The state of a database that has one root.
pub(super) fn state<H: Hasher>(size: Location, floor: Location, root: &H::Digest) -> State {
    let root = to_plain::<H>(root);
    State { size: *size, floor: *floor, root, operations_root: root }
}

/// The record of a user's key and value.
pub(super) fn entry(key: &[u8], value: &[u8]) -> Record {
    Record::Entry { key: Bytes::copy_from_slice(key), value: Bytes::copy_from_slice(value) }
}

/// What a change writes in a family whose keys are set, overwritten and deleted.
pub(super) fn upsert<H: Hasher>(change: &Change) -> Result<(H::Digest, Option<Record>), Error> {
    match change {
        Change::Put { key, value } => Ok((H::hash(&[key]), Some(entry(key, value)))),
        Change::Delete { key } => Ok((H::hash(&[key]), None)),
        Change::Append { .. } => Err(Error::Unsupported("a family of keys has no append")),
    }
}

/// The user's value in a record under a key.
pub(super) fn value(record: Option<Record>) -> Result<Option<Bytes>, Error> {
    match record {
        Some(Record::Entry { value, .. }) => Ok(Some(value)),
        Some(_) => Err(Error::Corrupt("no entry under a key".into())),
        None => Ok(None),
    }
}

/// What an operation says that stores `record` under `hash`.
pub(super) fn put<H: Hasher>(hash: &H::Digest, record: Record) -> Result<Operation, Error> {
    match record {
        Record::Entry { key, value } => {
            Ok(Operation::Put { hash: to_plain::<H>(hash), key, value })
        }
        _ => Err(Error::Corrupt("no entry under a key".into())),
    }
}

/// What a commit operation says.
pub(super) fn commit(record: Option<Record>) -> Result<Operation, Error> {
    Ok(Operation::Commit(metadata(record)?))
}

/// What a commit says of itself.
pub(super) fn metadata(record: Option<Record>) -> Result<Option<CommitMetadata>, Error> {
    match record {
        Some(Record::Commit(metadata)) => Ok(Some(metadata)),
        Some(_) => Err(Error::Corrupt("no metadata in a commit".into())),
        None => Ok(None),
    }
}

/// The family's batch inside a prepared one.
pub(super) fn batch<B: Send + Sync + 'static>(prepared: &Prepared) -> Result<Arc<B>, Error> {
    Arc::clone(&prepared.batch)
        .downcast()
        .map_err(|_| Error::Unsupported("a batch of another kind of database"))
}

/// Builds a database by state sync.
pub(super) async fn sync<DB, E, H>(
    context: E,
    db_config: DB::Config,
    target: &StateSync,
    fetcher: Arc<dyn Fetcher>,
) -> Result<DB, SyncError>
where
    E: Runtime,
    H: Hasher,
    DB: sync::Database<Family = Merkle, Digest = H::Digest, Hasher = H, Context = E>,
    DB::Op: Read<Cfg: Default + Send + Sync> + 'static,
{
    let source = Adapter::<E, H, DB::Op>::new(context.child("source"), fetcher);
    sync::sync(sync::engine::Config {
        context,
        source,
        target: to_target::<H>(target)?,
        max_outstanding_requests: target.outstanding,
        fetch_batch_size: target.batch,
        apply_batch_size: target.batch,
        db_config,
        update_rx: None,
        finish_rx: None,
        reached_target_tx: None,
    })
    .await
    .map_err(to_sync_error)
}
