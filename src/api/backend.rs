//! What the HTTP API needs of the process behind it. A server and a client both implement it, so
//! that one router serves both.

use super::{Entry, Subject};
use crate::{
    checkpoint::SignedCheckpoint,
    database::types::{
        ALLOCATION_BYTES, Change, DatabaseId, Digest, Family, IDEMPOTENCY_KEY_LENGTH_MAX, Mode,
        Root,
    },
    verify::ProofFile,
};
use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The state that an answer speaks of; becomes the `Syncd-*` headers.
#[derive(Clone, Debug)]
pub struct View {
    /// Identity of the database.
    pub database: DatabaseId,
    /// Number of operations.
    pub size: u64,
    /// Root at that size.
    pub root: Root,
    /// Seconds the state may be behind the publisher's (0 on a server).
    pub lag_seconds: f64,
}

/// Why a read was not answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// A client that has not verified any state yet: 503 `no_verified_state`.
    #[error("no state has been verified yet")]
    NoVerifiedState,
    /// The family cannot answer this question: 422 with this code and text.
    #[error("{message}")]
    Unsupported {
        /// Stable code, for example `not_provable` or `no_keys`.
        code: &'static str,
        /// Why, in a sentence.
        message: String,
    },
    /// There is no such thing in the verified state: 404.
    #[error("{0}")]
    NotFound(String),
    /// What was asked for is no longer held: 410.
    #[error("{0}")]
    Pruned(String),
    /// A limit was reached: 429 with `Retry-After`.
    #[error("{message}")]
    Busy {
        /// What is busy.
        message: String,
        /// When to come back.
        retry_after: Duration,
    },
    /// The store failed: 500.
    #[error("{0}")]
    Internal(String),
}

impl ReadError {
    /// What a compact database answers to reads.
    pub fn compact() -> Self {
        let message = "this database is compact: it holds no values, only what verifies the next";
        Self::Unsupported { code: "compact", message: message.into() }
    }
}

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

/// What a committed write led to. Only given once it is durable.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Receipt {
    /// Operations in the database after the commit.
    pub size: u64,
    /// Its root.
    pub root: Root,
    /// Sequence of the commit.
    pub sequence: u64,
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

/// The fields of `GET /v1/status`. `None` is left out of the JSON.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Status {
    /// `server` or `client`.
    pub role: &'static str,
    /// Version of the product.
    pub version: &'static str,
    /// Kind of database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// What is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Hash of the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<crate::database::types::HashKind>,
    /// Identity of the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<DatabaseId>,
    /// Number of operations.
    pub size: u64,
    /// First operation that a new replica needs.
    pub floor: u64,
    /// Root of the state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Sequence of the newest commit held.
    pub sequence: u64,
    /// When it was committed, milliseconds since 1970.
    pub committed_at: u64,
    /// When it was last signed, milliseconds since 1970.
    pub signed_at: u64,
    /// Fields that only a client has.
    #[serde(flatten)]
    pub client: Option<ClientStatus>,
}

/// The part of the status that only a client has.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct ClientStatus {
    /// `connecting`, `state_sync`, `following`, `polling`, `stalled` or `refusing`.
    pub state: &'static str,
    /// The server as configured.
    pub server: String,
    /// Size of the newest signed checkpoint known.
    pub target_size: u64,
    /// Operations behind it.
    pub lag_operations: u64,
    /// Seconds behind.
    pub lag_seconds: f64,
    /// Iterations since the start.
    pub iterations: u64,
    /// Operations a second of the running state sync or catch-up.
    pub operations_per_second: f64,
    /// Seconds until the running state sync ends, if one runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<f64>,
    /// The last thing that went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Values of a log, with their locations.
#[derive(Clone, Debug)]
pub struct Page {
    /// The state that they were read from.
    pub view: View,
    /// The values.
    pub entries: Vec<Entry>,
    /// Where to go on; the state's size at its end.
    pub next: u64,
}

/// A consistent state, streamed: pages arrive in `entries` until `Ok(None)` says that it is
/// complete. An `Err`, or a channel that closes before, means that it is not.
pub struct Export {
    /// The state that all entries belong to.
    pub view: View,
    /// The entries, each key once, in no particular order.
    pub entries: tokio::sync::mpsc::Receiver<Result<Option<Vec<Entry>>, ReadError>>,
    /// How long it may take in all.
    pub hold_max: Duration,
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
