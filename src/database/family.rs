//! What every family does the same way.

use super::{
    Error, Fetch, Fetcher, Operation, Prepared, Served, StateSync, SyncError,
    hash::{from_plain, to_plain},
    source::{Adapter, response_config, to_request, to_sync_error, to_target},
    storage::{Location, Merkle},
    types::{Digest, Root},
};
use crate::runtime::Runtime;
use bytes::Bytes;
use commonware_codec::{Decode as _, Encode, EncodeSize, Read};
use commonware_cryptography::Hasher;
use commonware_storage::{
    merkle,
    qmdb::{
        self,
        sync::{
            self,
            source::{Response, Source},
        },
    },
};
use commonware_utils::sync::Mutex;
use std::{collections::HashMap, future::Future, num::NonZeroU64, sync::Arc};

/// The library's handle, which a mutation takes and only a successful one gives back.
pub(super) struct Slot<D> {
    database: Option<D>,
    sizes: Sizes,
}

impl<D> Slot<D> {
    pub(super) fn new(database: D) -> Self {
        Self { database: Some(database), sizes: Sizes::default() }
    }

    /// The handle, for reading.
    pub(super) fn get(&self) -> Result<&D, Error> {
        self.database.as_ref().ok_or(Error::Poisoned)
    }

    /// Answers `fetch` in at most about `bytes_max` bytes.
    pub(super) async fn serve(&self, fetch: Fetch, bytes_max: usize) -> Result<Served, Error>
    where
        D: Source<Family = Merkle, Error = qmdb::Error<Merkle>, Op: Encode>,
    {
        serve(self.get()?, &self.sizes, fetch, bytes_max).await
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
        let database = self.database.take().ok_or(Error::Poisoned)?;
        let (database, output) = mutation(database).await?;
        self.database = Some(database);
        Ok(output)
    }
}

/// Operations of one block, whose sizes are measured together. Reading one holds at most so many
/// of the largest operations.
const BLOCK_OPERATIONS: u64 = 128;

/// What blocks of operations take when they are encoded: the log does not tell, and operations
/// have very different sizes. Operations never change, so a block is measured once.
#[derive(Default)]
struct Sizes(Mutex<HashMap<u64, usize>>);

/// Answers `fetch` from `source` in at most about `bytes_max` bytes, without reading many more.
async fn serve<S>(
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
            sizes.0.lock().insert(block, all);
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

/// Verifies the answer to a request for one operation and returns it.
pub(super) fn verify_operation<H, Op>(
    operations_root: Root,
    size: u64,
    location: u64,
    body: Bytes,
) -> Result<Op, String>
where
    H: Hasher,
    Op: Read<Cfg: Default> + Encode,
{
    if location >= size {
        return Err(format!("there is no operation {location} in a state of {size}"));
    }
    let fetch = Fetch::Operations { size, start: location, max: NonZeroU64::MIN };
    let response = Response::<Merkle, Op, H::Digest>::decode_cfg(body, &response_config(&fetch))
        .map_err(|error| format!("the proof cannot be decoded: {error}"))?;
    let Response::Operations { proof, operations } = response else {
        return Err("the proof is one of a boundary".into());
    };
    let [operation]: [Op; 1] = operations
        .try_into()
        .map_err(|operations: Vec<Op>| format!("it proves {} operations", operations.len()))?;
    let root = from_plain::<H>(operations_root);
    let start = Location::new(location);
    let proved = proof.leaves == Location::new(size)
        && qmdb::verify_proof::<H, Merkle, _>(
            &proof,
            start,
            std::slice::from_ref(&operation),
            &root,
        );
    if !proved {
        return Err("the proof does not lead to the signed root".into());
    }
    Ok(operation)
}

/// The roots over `nodes`, which stand for the first `size` operations, for every number of them
/// that may lie below the floor.
pub(super) fn roots<H: Hasher>(size: u64, nodes: &[Digest]) -> Vec<Root> {
    let hasher = qmdb::hasher::<H>();
    let nodes: Vec<H::Digest> = nodes.iter().map(|node| from_plain::<H>(*node)).collect();
    (0..=nodes.len())
        .filter_map(|inactive| {
            merkle::hasher::Hasher::<Merkle>::root(&hasher, Location::new(size), inactive, &nodes)
                .ok()
        })
        .map(|root| to_plain::<H>(&root))
        .collect()
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
    plain: impl Fn(S::Op) -> Operation,
) -> Result<Vec<Operation>, Error>
where
    S: Source<Family = Merkle, Error = qmdb::Error<Merkle>>,
{
    let (response, _) = source.serve(to_request(Fetch::Operations { size, start, max })).await?;
    match response {
        Response::Operations { operations, .. } => Ok(operations.into_iter().map(plain).collect()),
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
