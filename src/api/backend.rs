//! What the HTTP API needs of the process behind it. A server and a client both implement it, so
//! that one router serves both.

use crate::{
    checkpoint::SignedCheckpoint,
    database::types::{ALLOCATION_BYTES, Change, Digest, IDEMPOTENCY_KEY_LENGTH_MAX},
    documents::{Receipt, Status},
    reads::{Export, Page, ReadError, Subject, View},
    verify::ProofFile,
};
use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Why a write was not done. Nothing of it was applied.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// The family forbids it: 409 `conflict` (immutable key exists; with the first such key).
    #[error("{0}")]
    Conflict(String),
    /// The family has no such operation: 422 `unsupported`.
    #[error("{0}")]
    Unsupported(String),
    /// The same idempotency key came with another body: 422 `idempotency_mismatch`.
    #[error("the idempotency key was used before with another body")]
    IdempotencyMismatch,
    /// Too much is queued: 429 with `Retry-After`.
    #[error("the write queue is full")]
    Busy {
        /// When to come back.
        retry_after: Duration,
    },
    /// Larger than a commit may be: 413.
    #[error("{0}")]
    TooLarge(String),
    /// The process is stopping, or writing has stopped: 503 `unavailable`.
    #[error("{0}")]
    Unavailable(String),
    /// Nobody knows whether it was committed; ask again with the same idempotency key: 500.
    #[error("{0}")]
    Internal(String),
}

/// A request to write, all or nothing.
#[derive(Clone, Debug)]
pub struct WriteRequest {
    /// The changes in the order they were given; a later change of the same key wins.
    pub changes: Vec<Change>,
    /// Idempotency key and digest of the body, if the user gave a key.
    pub idempotency: Option<(Vec<u8>, Digest)>,
}

/// Bytes of memory that a write takes beyond its changes: its place in the queue, its answer, its
/// task.
const WRITE_BYTES: usize = 1024;

impl WriteRequest {
    /// Bytes of memory that it takes while it waits.
    pub fn memory(&self) -> usize {
        let changes = self.changes.capacity() * size_of::<Change>();
        let heap: usize = self.changes.iter().map(Change::heap_bytes).sum();
        let key = self.idempotency.as_ref().map_or(0, |(key, _)| key.capacity());
        WRITE_BYTES + changes + heap + key
    }

    /// The most that a request of `changes` changes takes whose keys and values have `bytes`.
    pub const fn memory_max(changes: usize, bytes: usize) -> usize {
        let change = size_of::<Change>() + Change::ALLOCATIONS_MAX * ALLOCATION_BYTES;
        WRITE_BYTES + IDEMPOTENCY_KEY_LENGTH_MAX + changes * change + bytes
    }
}

/// A part of the memory that writes may take together; given back when dropped.
#[derive(Debug)]
pub struct Room {
    permit: OwnedSemaphorePermit,
    /// What is taken in all.
    taken: Gauge,
}

impl Room {
    /// `bytes` of `budget`, noted in `taken`; `None` if it has less.
    pub fn take(budget: &Arc<Semaphore>, bytes: usize, taken: &Gauge) -> Option<Self> {
        let count = u32::try_from(bytes).unwrap_or(u32::MAX);
        let permit = budget.clone().try_acquire_many_owned(count).ok()?;
        taken.inc_by(gauge(bytes));
        Some(Self { permit, taken: taken.clone() })
    }

    /// Gives back what is more than `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let surplus = self.permit.num_permits().saturating_sub(bytes);
        self.taken.dec_by(gauge(surplus));
        drop(self.permit.split(surplus));
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.taken.dec_by(gauge(self.permit.num_permits()));
    }
}

fn gauge(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The process behind the API.
#[async_trait::async_trait]
pub trait Backend: Send + Sync + 'static {
    /// What `GET /v1/status` answers.
    fn status(&self) -> Status;

    /// The state that a read made now would see; `None` on a client without one.
    fn view(&self) -> Option<View>;

    /// The newest verified checkpoint held.
    fn checkpoint(&self) -> Option<SignedCheckpoint>;

    /// The value of `key` and the state it was read from.
    async fn get(&self, key: &[u8]) -> Result<(View, Option<Bytes>), ReadError>;

    /// The values that stand among the first operations from `from`, until `limit` of them or
    /// about `bytes_max` bytes were found (`keyless`).
    async fn entries(&self, from: u64, limit: usize, bytes_max: usize) -> Result<Page, ReadError>;

    /// Proves `subject` of the readable state.
    async fn prove(&self, subject: Subject) -> Result<ProofFile, ReadError>;

    /// Waits until the readable state has at least `size` operations; false after `timeout`.
    async fn wait_for_size(&self, size: u64, timeout: Duration) -> bool;

    /// Starts an export of the state held now.
    async fn export(&self) -> Result<Export, ReadError>;

    /// Where writes go; `None` on a client (405).
    fn writer(&self) -> Option<Arc<dyn Writer>>;
}

/// Where writes go.
#[async_trait::async_trait]
pub trait Writer: Send + Sync + 'static {
    /// Room for a write that takes at most `bytes` of memory, before it is made.
    fn reserve(&self, bytes: usize) -> Result<Room, WriteError>;

    /// Commits `request` durably, or changes nothing. It takes at most the memory of `room`.
    async fn write(&self, request: WriteRequest, room: Room) -> Result<Receipt, WriteError>;

    /// Most bytes that one request's changes may have when encoded.
    fn batch_bytes_max(&self) -> usize;

    /// Longest value accepted, in bytes.
    fn value_length_max(&self) -> usize;
}
