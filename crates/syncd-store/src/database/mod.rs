//! The authenticated database, behind one trait.
//!
//! `commonware-storage` is generic over family, key, value, hash, index and runtime. All of that
//! ends here: a [`Database`] is a boxed object that speaks [`types`]. A family is one file, which
//! says what is particular to it (`store`); [`open()`] and [`state_sync`] choose it at run time from
//! a [`Kind`]. What a database proved is verified without one, in `syncd-verify`.
//!
//! **Invariant:** a mutation that fails leaves the object [poisoned](Error::Poisoned): the
//! library consumes its handle. The owner drops it and opens the storage again.

mod any;
mod closed;
mod compact;
mod current;
mod export;
mod family;
mod generation;
mod immutable;
mod keyless;
mod open;
mod source;
mod storage;
mod store;

pub use closed::Closed;
pub use export::{Exporter, PAGE_OPERATIONS};
pub use generation::{
    Generations, PARTITION as GENERATIONS_PARTITION, partitions, required_partitions,
};
pub use keyless::SCAN_OPERATIONS_MAX;
pub use open::{OpenAt, open, state_sync};
pub use source::{FetchError, Fetched, Fetcher, Proved, Verdict};
pub(crate) use storage::PAGE_SIZE as LOG_PAGE_SIZE;
pub use syncd_proto::{
    database::{EXECUTION_VERSION, ExecutionVersion, Fetch, Kind, Operation, State, WriteRule},
    record, types,
};

use bytes::Bytes;
use commonware_runtime::Handle;
use record::CommitMetadata;
use std::{
    any::Any,
    num::{NonZeroU64, NonZeroUsize},
    sync::Arc,
};
use types::{Change, Mode, Root};

/// Where a database is kept, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its generation.
    pub generation: u64,
    /// Whether the operations above the floor are kept, or only what the next commit builds on.
    pub mode: Mode,
}

/// A batch that was executed but not applied: its state is known, the database is unchanged.
#[derive(Clone)]
pub struct Prepared {
    /// The state that applying leads to.
    pub state: State,
    batch: Arc<dyn Any + Send + Sync>,
}

/// A value of a log of values, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its location in the operations log.
    pub location: u64,
    /// The user's value.
    pub value: Bytes,
}

/// A page of a log of values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    /// Entries in the order of their locations. May be none although the log goes on.
    pub entries: Vec<LogEntry>,
    /// Where to go on reading; equals the size at the log's end.
    pub next: u64,
}

/// What a database says of a key, and the proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyProof {
    /// The user's value; `None` if the key is absent.
    pub value: Option<Bytes>,
    /// Proof of the value or of the absence, in the library's encoding.
    pub proof: Bytes,
}

/// What went wrong in a database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An earlier mutation failed; the handle is gone.
    #[error("an earlier failure made this database handle unusable")]
    Poisoned,
    /// The storage holds something else than this program wrote.
    #[error("data damaged: {0}")]
    Corrupt(String),
    /// The operations asked for were pruned.
    #[error("operations were pruned")]
    Pruned,
    /// A request that no state of this database can answer.
    #[error("out of range: {0}")]
    OutOfRange(String),
    /// The family has no such operation.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The storage failed.
    #[error("storage: {0}")]
    Storage(String),
    /// The storage is not where it was.
    #[error("{0}")]
    Gone(String),
}

impl Error {
    /// What an error says of a database that was to be opened: it never prunes what it needs for that.
    pub fn of_opening(self) -> Self {
        match self {
            Self::Pruned | Self::OutOfRange(_) => {
                Self::Corrupt(format!("it lacks what it needs to be opened: {self}"))
            }
            error => error,
        }
    }
}

impl<F: commonware_storage::merkle::Family> From<commonware_storage::qmdb::Error<F>> for Error {
    fn from(error: commonware_storage::qmdb::Error<F>) -> Self {
        use commonware_storage::{journal, merkle, qmdb};
        match &error {
            qmdb::Error::OperationPruned(_)
            | qmdb::Error::HistoricalFloorPruned(_)
            | qmdb::Error::Journal(journal::Error::ItemPruned(_))
            | qmdb::Error::Merkle(merkle::Error::ElementPruned(_)) => Self::Pruned,
            qmdb::Error::Merkle(
                merkle::Error::RangeOutOfBounds(_) | merkle::Error::LocationOverflow(_),
            )
            | qmdb::Error::LocationOutOfBounds(..)
            | qmdb::Error::Journal(journal::Error::ItemOutOfRange(_)) => {
                Self::OutOfRange(error.to_string())
            }
            _ if crate::damage::of_database(&error) => Self::Corrupt(error.to_string()),
            _ => Self::Storage(error.to_string()),
        }
    }
}

/// A database of any family, hash and runtime.
///
/// Reads take `&self`; mutations take `&mut self` and are never cancelled half way by callers
/// (see the module's invariant).
#[async_trait::async_trait]
pub trait Database: Send + Sync {
    /// The state that reads see.
    fn state(&self) -> Result<State, Error>;

    /// First operation still held. A compact database holds none but its last commits; there it
    /// is what this process last pruned to, 0 before.
    fn retained_from(&self) -> Result<u64, Error>;

    /// The value of the user's `key`.
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error>;

    /// What the last commit says of itself; `None` in a database that was never written.
    async fn metadata(&self) -> Result<Option<CommitMetadata>, Error>;

    /// Executes `changes` on top of `parent` (or of the database), without applying them. The
    /// same changes on the same state give the same result everywhere.
    ///
    /// Every unapplied ancestor must be held until this returns.
    async fn prepare(
        &self,
        parent: Option<&Prepared>,
        changes: &[Change],
        metadata: CommitMetadata,
    ) -> Result<Prepared, Error>;

    /// Applies `prepared` and its unapplied ancestors.
    async fn apply(&mut self, prepared: Prepared) -> Result<(), Error>;

    /// Starts to make the applied state durable; the handle says when it is.
    async fn start_sync(&mut self) -> Result<Handle<()>, Error>;

    /// Makes the applied state durable so that opening has nothing to repair.
    async fn sync(&mut self) -> Result<(), Error>;

    /// Drops operations below `location`, which is at most the floor. A compact database drops the
    /// states of fewer than `location` operations, at most its size; the newest always stays.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] above the bound, and nothing is dropped.
    async fn prune(&mut self, location: u64) -> Result<(), Error>;

    /// Answers `fetch` in at most about `bytes_max` bytes.
    async fn serve(&self, fetch: Fetch, bytes_max: usize) -> Result<Served, Error>;

    /// Up to `max` operations from `start`, of the state of `size`.
    async fn operations(
        &self,
        size: u64,
        start: u64,
        max: NonZeroU64,
    ) -> Result<Vec<Operation>, Error>;

    /// The values of a log of values from `from`: at most `count_max`, and of at most `bytes_max`
    /// bytes together unless the first alone is larger. Commits are skipped.
    ///
    /// # Errors
    ///
    /// As [`Database::entry`]; `from` may equal the size.
    async fn entries(
        &self,
        from: u64,
        count_max: NonZeroUsize,
        bytes_max: usize,
    ) -> Result<Entries, Error>;

    /// The value of the user's `key`, or its absence, proved against the canonical root of the
    /// state that reads see. A proof of absence discloses the key and value of a neighbour in the
    /// order of hashes.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] in every family but `current`: elsewhere an overwritten value would
    /// be proved as well as the present one.
    async fn prove_key(&self, key: &[u8]) -> Result<KeyProof, Error>;

    /// The operation at `location`, proved against the operations root of the state of `size`, in
    /// the library's encoding.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] unless `location` < `size` ≤ the database's; [`Error::Pruned`] if no
    /// commit ended at `size`, or what the proof needs is no longer held.
    async fn prove_operation(&self, location: u64, size: u64) -> Result<Bytes, Error>;
}

/// An encoded answer to a [`Fetch`].
#[derive(Clone, Debug)]
pub struct Served {
    /// The answer, in the library's encoding.
    pub body: Bytes,
    /// Operations in it.
    pub operations: u64,
}

/// Which state to build by state sync, and how.
#[derive(Clone, Debug)]
pub struct StateSync {
    /// Operations root of the target.
    pub operations_root: Root,
    /// First operation to fetch.
    pub floor: u64,
    /// Size of the target.
    pub size: u64,
    /// Operations per request.
    pub batch: NonZeroU64,
    /// Requests in flight.
    pub outstanding: NonZeroUsize,
}

/// Why a state sync ended without a database.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The operations do not add up to the target's root.
    #[error("root mismatch: {0}")]
    RootMismatch(String),
    /// The source gave up.
    #[error(transparent)]
    Source(FetchError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] Error),
}
