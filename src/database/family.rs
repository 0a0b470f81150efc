//! What every family does the same way.

use super::{
    Error, Fetch, Fetcher, Operation, Prepared, Served, State, StateSync, SyncError,
    hash::{from_plain, to_plain},
    record::{CommitMetadata, Record},
    source::{Adapter, response_config, to_request, to_sync_error, to_target},
    storage::{Location, Merkle},
    types::{Change, Digest, Root},
};
use crate::runtime::Runtime;
use bytes::Bytes;
use commonware_codec::{Decode as _, Encode, EncodeSize as _, Read};
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
use std::{future::Future, num::NonZeroU64, sync::Arc};

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

/// Operations read at first when nothing is known of their size.
const PROBE_OPERATIONS: u64 = 64;

/// Answers `fetch` from `source` in about `bytes_max` bytes.
///
/// Operations have very different sizes and the log tells none of them beforehand, so a large
/// request is measured by a small one first; memory stays near the budget whatever is stored.
pub(super) async fn serve<S>(source: &S, fetch: Fetch, bytes_max: usize) -> Result<Served, Error>
where
    S: Source<Family = Merkle, Error = qmdb::Error<Merkle>, Op: commonware_codec::Encode>,
{
    let Fetch::Operations { size, start, max } = fetch else {
        let (response, _) = source.serve(to_request(fetch)).await?;
        return Ok(Served { body: response.encode(), operations: 1 });
    };
    let mut count = max.get();
    if count > PROBE_OPERATIONS {
        let probe = NonZeroU64::new(PROBE_OPERATIONS).unwrap_or(NonZeroU64::MIN);
        let (response, _) =
            source.serve(to_request(Fetch::Operations { size, start, max: probe })).await?;
        count = count.min(fitting(&response, bytes_max));
    }
    loop {
        let max = NonZeroU64::new(count).unwrap_or(NonZeroU64::MIN);
        let (response, _) =
            source.serve(to_request(Fetch::Operations { size, start, max })).await?;
        let fits = fitting(&response, bytes_max);
        if fits >= operations_of(&response) || operations_of(&response) == 1 {
            let operations = operations_of(&response);
            return Ok(Served { body: response.encode(), operations });
        }
        count = fits.min(count.saturating_sub(1)).max(1);
    }
}

fn operations_of<Op, D: commonware_cryptography::Digest>(
    response: &Response<Merkle, Op, D>,
) -> u64 {
    match response {
        Response::Operations { operations, .. } => operations.len() as u64,
        Response::Boundary { .. } => 1,
    }
}

/// How many operations of the measured average size fit into `bytes_max`.
fn fitting<Op, D>(response: &Response<Merkle, Op, D>, bytes_max: usize) -> u64
where
    Op: commonware_codec::EncodeSize,
    D: commonware_cryptography::Digest,
{
    let count = operations_of(response).max(1);
    let size = (response.encode_size() as u64).max(1);
    if size <= bytes_max as u64 && count < PROBE_OPERATIONS {
        return count;
    }
    (bytes_max as u64).saturating_mul(count) / size
}

/// Verifies the answer to a boundary request and returns the pinned nodes.
pub(super) fn verify_boundary<H, Op>(
    operations_root: Root,
    size: u64,
    start: u64,
    body: Bytes,
) -> Result<Vec<Digest>, String>
where
    H: Hasher,
    Op: Read<Cfg: Default> + Encode,
{
    let fetch = Fetch::Boundary { size, start };
    let response = Response::<Merkle, Op, H::Digest>::decode_cfg(body, &response_config(&fetch))
        .map_err(|error| format!("the boundary cannot be decoded: {error}"))?;
    let Response::Boundary { proof, op, pinned_nodes } = response else {
        return Err("operations were sent instead of a boundary".into());
    };
    let root = from_plain::<H>(operations_root);
    let proved = proof.leaves == Location::new(size)
        && proof.verify_proof_and_pinned_nodes(
            &qmdb::hasher::<H>(),
            &[op.encode()],
            Location::new(start),
            &pinned_nodes,
            &root,
        );
    if !proved {
        return Err("the boundary's proof does not lead to the signed root".into());
    }
    Ok(plain_nodes::<H>(&pinned_nodes))
}

/// The plain form of Merkle nodes.
pub(super) fn plain_nodes<H: Hasher>(nodes: &[H::Digest]) -> Vec<Digest> {
    nodes.iter().map(to_plain::<H>).collect()
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
