//! Where state sync gets its operations: the library's `Source` on top of a plain [`Fetcher`].

use super::{
    Fetch, StateSync, SyncError,
    storage::{Location, Merkle},
};
use bytes::Bytes;
use commonware_codec::{Decode, Read};
use commonware_cryptography::{Digest, Hasher};
use commonware_runtime::Spawner;
use commonware_storage::{
    merkle::MAX_PROOF_DIGESTS_PER_ELEMENT,
    qmdb::sync::{
        self, EngineError,
        source::{Feedback, Request, Response, Source},
    },
};
use commonware_utils::{
    channel::{mpsc, oneshot},
    range::NonEmptyRange,
};
use std::{marker::PhantomData, sync::Arc};
use syncd_proto::hash::from_plain;

/// Why a fetcher gave up.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// The operations are no longer held by the source: a newer target is needed.
    #[error("the source no longer holds the operations of this target")]
    Pruned,
    /// The work was called off.
    #[error("cancelled")]
    Cancelled,
}

/// Called once, with what the answer proved to be.
pub type Verdict = Box<dyn FnOnce(Proved) + Send>;

/// What an answer proved to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proved {
    /// The proof holds, of so many operations.
    Right {
        /// Operations of the database that came with it.
        operations: u64,
    },
    /// It does not hold, or cannot be decoded.
    Wrong,
}

/// An answer and whom to tell what became of it.
pub struct Fetched {
    /// The answer, in the library's encoding.
    pub body: Bytes,
    /// Told whether the proof in it holds.
    pub verdict: Verdict,
}

/// Brings answers, from wherever. Everything in them is verified by the caller; retrying,
/// reconnecting and choosing another source are the fetcher's work, since state sync ends at the
/// first error.
#[async_trait::async_trait]
pub trait Fetcher: Send + Sync + 'static {
    /// Brings an answer to `fetch`.
    async fn fetch(&self, fetch: Fetch) -> Result<Fetched, FetchError>;
}

/// Configuration for decoding an answer with at most `max` operations.
pub(super) fn response_config<C: Default>(fetch: &Fetch) -> (usize, C) {
    // The engine never asks for more than fits; saturating keeps a 32-bit host honest.
    (
        usize::try_from(fetch.max().get()).unwrap_or(usize::MAX / MAX_PROOF_DIGESTS_PER_ELEMENT),
        C::default(),
    )
}

/// The library's source for operations of type `Op`.
pub(super) struct Adapter<E, H, Op> {
    context: E,
    fetcher: Arc<dyn Fetcher>,
    _types: PhantomData<fn() -> (H, Op)>,
}

impl<E, H, Op> Adapter<E, H, Op> {
    pub(super) fn new(context: E, fetcher: Arc<dyn Fetcher>) -> Self {
        Self { context, fetcher, _types: PhantomData }
    }
}

/// Fetches until an answer can be decoded; what cannot is reported as wrong.
async fn fetch_decoded<H, Op>(
    fetcher: &dyn Fetcher,
    fetch: Fetch,
) -> Result<(Response<Merkle, Op, H::Digest>, Verdict), FetchError>
where
    H: Hasher,
    Op: Read<Cfg: Default>,
{
    loop {
        let Fetched { body, verdict } = fetcher.fetch(fetch).await?;
        match Response::decode_cfg(body, &response_config(&fetch)) {
            Ok(response) => return Ok((response, verdict)),
            Err(_) => verdict(Proved::Wrong),
        }
    }
}

impl<E, H, Op> Source for Adapter<E, H, Op>
where
    E: Spawner,
    H: Hasher,
    Op: Read<Cfg: Default + Send + Sync> + Send + Sync + 'static,
{
    type Family = Merkle;
    type Digest = H::Digest;
    type Op = Op;
    type Error = FetchError;

    async fn serve(&self, request: Request<Merkle>) -> sync::source::Result<Self> {
        let fetch = to_fetch(request);
        let (response, verdict) = fetch_decoded::<H, Op>(&*self.fetcher, fetch).await?;
        let operations = count(&response);
        let (judge, judged) = oneshot::channel();
        let (candidates, next) = mpsc::channel(1);
        let fetcher = self.fetcher.clone();
        // Told of a wrong answer, this task brings the next one; it ends with the request.
        self.context.child("verdict").spawn(move |_| async move {
            let (mut judged, mut verdict, mut operations) = (judged, verdict, operations);
            // A dropped sender is no judgement: the request was called off.
            while let Ok(valid) = judged.await {
                if valid {
                    return verdict(Proved::Right { operations });
                }
                verdict(Proved::Wrong);
                let Ok((response, next_verdict)) = fetch_decoded::<H, Op>(&*fetcher, fetch).await
                else {
                    return;
                };
                operations = count(&response);
                let (judge, next_judged) = oneshot::channel();
                if candidates.send((response, judge)).await.is_err() {
                    return;
                }
                (judged, verdict) = (next_judged, next_verdict);
            }
        });
        Ok((response, Some(Feedback::new(judge, next))))
    }
}

/// Operations in an answer. That of a boundary is sent again with those after it.
const fn count<Op, D: Digest>(response: &Response<Merkle, Op, D>) -> u64 {
    match response {
        Response::Operations { operations, .. } => operations.len() as u64,
        Response::Boundary { .. } => 0,
    }
}

/// The plain form of the library's request.
fn to_fetch(request: Request<Merkle>) -> Fetch {
    match request {
        Request::Operations { size, start, max_ops } => {
            Fetch::Operations { size: *size, start: *start, max: max_ops }
        }
        Request::Boundary { size, start } => Fetch::Boundary { size: *size, start: *start },
    }
}

/// The library's form of a plain request.
pub(super) fn to_request(fetch: Fetch) -> Request<Merkle> {
    match fetch {
        Fetch::Operations { size, start, max } => Request::Operations {
            size: Location::new(size),
            start: Location::new(start),
            max_ops: max,
        },
        Fetch::Boundary { size, start } => {
            Request::Boundary { size: Location::new(size), start: Location::new(start) }
        }
    }
}

/// The library's form of a target.
pub(super) fn to_target<H: Hasher>(
    target: &StateSync,
) -> Result<sync::Target<Merkle, H::Digest>, SyncError> {
    let range = NonEmptyRange::new(Location::new(target.floor)..Location::new(target.size))
        .map_err(|_| super::Error::OutOfRange("the target's range is empty".into()))?;
    Ok(sync::Target::new(from_plain::<H>(target.operations_root), range))
}

/// Sorts the library's errors by what has to be done about them.
pub(super) fn to_sync_error<D: commonware_cryptography::Digest>(
    error: sync::Error<Merkle, FetchError, D>,
) -> SyncError {
    match error {
        sync::Error::Source(error) => SyncError::Source(error),
        // No valid answer: the fetcher stopped offering candidates.
        sync::Error::Engine(EngineError::InvalidResponse) => {
            SyncError::Source(FetchError::Cancelled)
        }
        sync::Error::Engine(error @ EngineError::RootMismatch { .. }) => {
            SyncError::RootMismatch(error.to_string())
        }
        sync::Error::Engine(error) => super::Error::Storage(error.to_string()).into(),
        sync::Error::Database(error) => super::Error::from(error).into(),
    }
}
