//! A database, the log that it is the sum of, and the signed state that both stand at.
//!
//! The publisher writes one, a replica follows with one, and what serves others reads one; so
//! serving does not depend on owning a database for writing.
//!
//! # Durability
//!
//! - A commit MUST be in the synced log before it is applied, acknowledged, shown or sent.
//! - The database MUST NOT be made durable ahead of the log.
//! - After an error of the log or the database nothing more may be committed in this process.
//! - Opening executes again what the log holds beyond the database; a different root, or commits
//!   of another execution version, end it before anything is applied.

mod holds;

pub use holds::{HOLD_OPERATIONS_MAX, Hold, Holds};

use crate::{
    commit_log::{self, Bounds, Commit, CommitLog, Retention},
    database::{
        self, Database, EXECUTION_VERSION, Entries, Exporter, Fetch, KeyProof, Kind, OpenAt, Place,
        Prepared, Served,
        record::CommitMetadata,
        types::{Change, Digest, Mode},
    },
    runtime::{Runtime, StorageGuard},
    watch,
};
use bytes::Bytes;
use commonware_utils::sync::{AsyncRwLock, Mutex};
use std::{
    collections::VecDeque,
    num::{NonZeroU64, NonZeroUsize},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use syncd_proto::{checkpoint::SignedCheckpoint, trace::TraceContext};
use tracing::Instrument as _;

/// Bytes of log that sessions in state sync may hold beyond the retention.
pub const HOLD_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Segments of log that they may hold beyond the retention: one in this many of those that it allows.
pub const HOLD_SEGMENTS_PART: usize = 3;
/// Commits that are executed again at once when a ledger is opened.
const REDO_BATCH: u64 = 32;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log.
    #[error(transparent)]
    Log(#[from] commit_log::Error),
    /// The database.
    #[error(transparent)]
    Database(#[from] database::Error),
    /// The database is at a state that no kept record leads to: acknowledged data was lost.
    #[error(
        "the database stands at {size} operations, root {root}, which no record of the commit log ({first}..={last}) leads to: acknowledged data was lost; restore both from one backup, then run 'syncctl new-epoch'"
    )]
    Lost {
        /// Size of the database.
        size: u64,
        /// Its root.
        root: Digest,
        /// Oldest sequence in the log.
        first: u64,
        /// Newest sequence in the log.
        last: u64,
    },
    /// The log ends before a commit that was acknowledged.
    #[error(
        "the commit log ends at commit {last}, but commit {given_out} was acknowledged: the end of the log is damaged; restore it from a backup. On a server, 'syncctl new-epoch --discard-unreadable' gives up what is lost; a replica is built anew in an empty directory"
    )]
    CutShort {
        /// Newest sequence in the log.
        last: u64,
        /// Newest sequence that was acknowledged.
        given_out: u64,
    },
    /// Nothing says up to which commit the log was acknowledged.
    #[error(
        "what says how many commits were acknowledged is missing or damaged (the log ends at commit {last}): restore the storage from a backup. On a server, 'syncctl new-epoch --discard-unreadable' goes on with what is there; a replica is built anew in an empty directory"
    )]
    Unmarked {
        /// Newest sequence in the log.
        last: u64,
    },
    /// Commits of another version would have to be executed again.
    #[error(
        "commit {sequence} was executed by version {theirs}, this program has {ours}: start the old version once and stop it orderly, so that nothing has to be executed again"
    )]
    ExecutionVersion {
        /// The first such commit.
        sequence: u64,
        /// The version that made it.
        theirs: database::ExecutionVersion,
        /// This program's.
        ours: database::ExecutionVersion,
    },
    /// Executing a commit gave another state than was signed.
    #[error("executing commit {sequence} gives root {computed}, but {signed} was signed")]
    Diverged {
        /// The commit.
        sequence: u64,
        /// What was computed here.
        computed: Digest,
        /// What the publisher signed.
        signed: Digest,
    },
}

impl Error {
    /// Whether the storage is not where it was.
    pub const fn is_gone(&self) -> bool {
        matches!(
            self,
            Self::Log(commit_log::Error::Gone(_)) | Self::Database(database::Error::Gone(_))
        )
    }

    /// Whether the data are damaged, rather than the disk unable.
    pub const fn is_damage(&self) -> bool {
        match self {
            Self::Log(error) => matches!(error, commit_log::Error::Corrupt(_)),
            Self::Database(error) => matches!(error, database::Error::Corrupt(_)),
            Self::Lost { .. }
            | Self::CutShort { .. }
            | Self::Unmarked { .. }
            | Self::ExecutionVersion { .. }
            | Self::Diverged { .. } => true,
        }
    }
}

/// How much history is kept.
#[derive(Clone, Copy, Debug)]
pub struct History {
    /// Of the log.
    pub log: Retention,
    /// Operations below the floor; `None` keeps all.
    pub operations: Option<u64>,
}

/// Keeps the state of a running export readable while it lives.
pub struct ExportHold {
    _hold: Hold,
    running: Arc<watch::Sender<usize>>,
}

impl Drop for ExportHold {
    fn drop(&mut self) {
        self.running.send_modify(|running| *running -= 1);
    }
}

/// A database with its log.
pub struct Ledger<E: Runtime> {
    kind: Kind,
    place: Place,
    database: Arc<AsyncRwLock<Box<dyn Database>>>,
    log: CommitLog<E>,
    head: watch::Sender<SignedCheckpoint>,
    /// Newest sequence that the database itself has made durable.
    durable: AtomicU64,
    /// Sequence below which a compact database dropped its frontiers.
    pruned: AtomicU64,
    /// Which work made the newest commits.
    traces: Mutex<VecDeque<(u64, TraceContext)>>,
    holds: Arc<Holds>,
    exports: Arc<watch::Sender<usize>>,
}

impl<E: Runtime> Ledger<E> {
    /// A ledger that begins with the state of `database`, which `base` describes. The log is
    /// durable on return.
    pub async fn create(
        context: &E,
        place: Place,
        database: Box<dyn Database>,
        base: SignedCheckpoint,
    ) -> Result<Self, Error> {
        let record = Commit::base_record(base, EXECUTION_VERSION);
        let log = CommitLog::create(context.child("commit_log"), place.generation, &record).await?;
        Ok(Self::with(place, database, log, record.checkpoint))
    }

    /// Opens the ledger in `place`, executing again what the database lacks, and shows every
    /// record kept to `visit`. `None` if there is no log.
    ///
    /// With `truncate`, a database ahead of the log is cut back to it (a replica's log is the
    /// truth of what it had verified); without, that is loss of acknowledged data.
    pub async fn open(
        context: &E,
        place: Place,
        truncate: bool,
        visit: impl FnMut(&Commit),
    ) -> Result<Option<Self>, Error> {
        Self::open_with(context, place, truncate, true, visit).await
    }

    /// Opens a replica's ledger where there is no room: what is executed again stays in memory, as far as it fits there,
    /// until the next [upkeep](Self::maintain).
    pub async fn open_without_room(context: &E, place: Place) -> Result<Option<Self>, Error> {
        Self::open_with(context, place, true, false, |_| {}).await
    }

    async fn open_with(
        context: &E,
        place: Place,
        truncate: bool,
        has_room: bool,
        visit: impl FnMut(&Commit),
    ) -> Result<Option<Self>, Error> {
        let log = CommitLog::open(context.child("commit_log"), place.generation, visit).await?;
        let Some(log) = log else { return Ok(None) };
        let last = log.read(log.bounds().last).await?;
        let at = if truncate { OpenAt::AtMost(last.state().size) } else { OpenAt::Latest };
        let kind = last.kind();
        let database = database::open(context.child("database"), kind, place, at).await;
        let database = database.map_err(database::Error::of_opening)?;
        let ledger = Self::with(place, database, log, last.checkpoint);
        ledger.redo().await?;
        if has_room {
            ledger.sync().await?;
        }
        let last = ledger.log.bounds().last;
        match ledger.log.given_out_before() {
            Some(given_out) if given_out <= last => {}
            Some(given_out) => return Err(Error::CutShort { last, given_out }),
            None => return Err(Error::Unmarked { last }),
        }
        Ok(Some(ledger))
    }

    fn with(
        place: Place,
        database: Box<dyn Database>,
        log: CommitLog<E>,
        head: SignedCheckpoint,
    ) -> Self {
        let kind = head.checkpoint.kind();
        let durable = log.bounds().first;
        Self {
            kind,
            place,
            database: Arc::new(AsyncRwLock::new(database)),
            log,
            head: watch::Sender::new(head),
            durable: AtomicU64::new(durable),
            pruned: AtomicU64::new(0),
            traces: Mutex::default(),
            holds: Arc::default(),
            exports: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Executes what the log holds beyond the database.
    async fn redo(&self) -> Result<(), Error> {
        let state = self.database.read().await.state()?;
        let Bounds { first, last } = self.log.bounds();
        let found = self.log.find_size(state.size).await?;
        let Some(found) = found.filter(|commit| commit.state().root == state.root) else {
            return Err(Error::Lost { size: state.size, root: state.root, first, last });
        };
        let mut next = found.sequence() + 1;
        self.durable.store(found.sequence(), Ordering::Release);
        for sequence in next..=last {
            let theirs = self.log.read(sequence).await?.execution;
            if theirs != EXECUTION_VERSION {
                return Err(Error::ExecutionVersion { sequence, theirs, ours: EXECUTION_VERSION });
            }
        }
        if next <= last {
            tracing::info!(from = next, to = last, "executing again what the database lacks");
        }
        while next <= last {
            let mut commits = Vec::new();
            for sequence in next..=last.min(next + REDO_BATCH - 1) {
                commits.push(self.log.read(sequence).await?);
            }
            next += commits.len() as u64;
            let prepared = self.execute(&commits).await?;
            if let Some(tail) = prepared.last() {
                self.database.write().await.apply(tail.clone()).await?;
            }
        }
        Ok(())
    }

    /// Executes `commits` on top of each other without applying them; every state must be the
    /// signed one. The results keep each other alive: hold all until the last is applied.
    pub async fn execute(&self, commits: &[Commit]) -> Result<Vec<Prepared>, Error> {
        let database = self.database.read().await;
        let mut chain: Vec<Prepared> = Vec::with_capacity(commits.len());
        for commit in commits {
            let prepared =
                database.prepare(chain.last(), &commit.changes, commit.metadata()).await?;
            if prepared.state != commit.state() {
                return Err(Error::Diverged {
                    sequence: commit.sequence(),
                    computed: prepared.state.root,
                    signed: commit.state().root,
                });
            }
            chain.push(prepared);
        }
        Ok(chain)
    }

    /// Executes `changes` on the state that reads see, without applying them.
    pub async fn prepare(
        &self,
        changes: &[Change],
        metadata: CommitMetadata,
    ) -> Result<Prepared, Error> {
        Ok(self.database.read().await.prepare(None, changes, metadata).await?)
    }

    /// Appends `commits` to the log with one sync, then applies `prepared`, what executing the
    /// last of them gave.
    ///
    /// # Errors
    ///
    /// Any error is final for this ledger.
    pub async fn commit(&self, commits: &[Commit], prepared: Prepared) -> Result<(), Error> {
        let Some(newest) = commits.last() else { return Ok(()) };
        let appending = self.log.append(commits);
        appending
            .instrument(tracing::info_span!("ledger.log.append", commits = commits.len()))
            .await?;
        let mut database = self.database.write().await;
        database.apply(prepared).instrument(tracing::info_span!("ledger.database.apply")).await?;
        // Under the lock, so that a reader's value and the state it is told belong together.
        self.head.send_replace(newest.checkpoint.clone());
        Ok(())
    }

    /// Notes which work makes the commit `sequence`, for those who follow it.
    pub fn note_trace(&self, sequence: u64, trace: TraceContext) {
        let mut traces = self.traces.lock();
        if traces.len() == TRACES_MAX {
            traces.pop_front();
        }
        traces.push_back((sequence, trace));
    }

    /// What was noted of the commit `sequence`, while that is recent.
    pub fn trace_of(&self, sequence: u64) -> Option<TraceContext> {
        let traces = self.traces.lock();
        traces.iter().rev().find(|(noted, _)| *noted == sequence).map(|(_, trace)| *trace)
    }

    /// Takes another signature of the state that the ledger is at: the one that came last, which
    /// after a step of the publisher's clock may name an earlier time.
    pub fn resign(&self, checkpoint: SignedCheckpoint) {
        self.head.send_if_modified(|head| {
            let is_another = head.checkpoint.same_state(&checkpoint.checkpoint)
                && head.checkpoint.signed_at_ms != checkpoint.checkpoint.signed_at_ms;
            if is_another {
                *head = checkpoint;
            }
            is_another
        });
    }

    /// Asks `guard` from here on before commits are given out, and at each upkeep; it also watches
    /// the partitions of database and log.
    pub fn guard_with(&self, guard: &StorageGuard) {
        let Place { generation, mode } = self.place;
        let partitions = database::required_partitions(self.kind.family, generation, mode);
        self.log.guard_with(guard.with(&partitions));
    }

    /// Family and hash.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Which generation of the storage this is.
    pub const fn generation(&self) -> u64 {
        self.place.generation
    }

    /// How much of the database is kept.
    pub const fn mode(&self) -> Mode {
        self.place.mode
    }

    /// The log.
    pub const fn log(&self) -> &CommitLog<E> {
        &self.log
    }

    /// The state that reads see, signed.
    pub fn head(&self) -> SignedCheckpoint {
        self.head.borrow().clone()
    }

    /// Tells of new states and signatures.
    pub fn subscribe(&self) -> watch::Receiver<SignedCheckpoint> {
        self.head.subscribe()
    }

    /// A value and the state that it was read from.
    pub async fn get(
        &self,
        key: &[u8],
    ) -> Result<(SignedCheckpoint, Option<Bytes>), database::Error> {
        let database = self.database.read().await;
        let head = self.head();
        Ok((head, database.get(key).await?))
    }

    /// The first of `keys` that has a value.
    pub async fn first_existing<'a>(
        &self,
        keys: impl Iterator<Item = &'a [u8]> + Send,
    ) -> Result<Option<&'a [u8]>, database::Error> {
        let database = self.database.read().await;
        for key in keys {
            if database.get(key).await?.is_some() {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// What `key` holds, proved, and the signed state that it is proved of.
    pub async fn prove_key(
        &self,
        key: &[u8],
    ) -> Result<(SignedCheckpoint, KeyProof), database::Error> {
        let database = self.database.read().await;
        let head = self.head();
        Ok((head, database.prove_key(key).await?))
    }

    /// A proof of the operation at `location`, and the signed state that it is proved of.
    pub async fn prove_operation(
        &self,
        location: u64,
    ) -> Result<(SignedCheckpoint, Bytes), database::Error> {
        let database = self.database.read().await;
        let head = self.head();
        let proof = database.prove_operation(location, head.checkpoint.size).await?;
        Ok((head, proof))
    }

    /// A page of a log of values, and the state that it was read from.
    pub async fn entries(
        &self,
        from: u64,
        count_max: NonZeroUsize,
        bytes_max: usize,
    ) -> Result<(SignedCheckpoint, Entries), database::Error> {
        let database = self.database.read().await;
        let head = self.head();
        let from = from.min(head.checkpoint.size);
        Ok((head, database.entries(from, count_max, bytes_max).await?))
    }

    /// Up to `max` operations from `start` of the state that reads see, and that state.
    pub async fn operations(
        &self,
        start: u64,
        max: NonZeroU64,
    ) -> Result<(SignedCheckpoint, Vec<database::Operation>), database::Error> {
        let database = self.database.read().await;
        let head = self.head();
        let operations = database.operations(head.checkpoint.size, start, max).await?;
        Ok((head, operations))
    }

    /// Answers a request for operations.
    pub async fn serve(&self, fetch: Fetch, bytes_max: usize) -> Result<Served, database::Error> {
        self.database.read().await.serve(fetch, bytes_max).await
    }

    /// Begins an export of the state that reads see; the hold keeps it readable.
    pub async fn export(&self) -> (SignedCheckpoint, Exporter, ExportHold) {
        let _database = self.database.read().await;
        let head = self.head();
        let _hold = self.hold(&head);
        self.exports.send_modify(|running| *running += 1);
        let hold = ExportHold { _hold, running: self.exports.clone() };
        let (size, floor) = (head.checkpoint.size, head.checkpoint.floor);
        (head, Exporter::new(self.database.clone(), self.kind.family, size, floor), hold)
    }

    /// Whether an export is running.
    pub fn is_exporting(&self) -> bool {
        *self.exports.borrow() > 0
    }

    /// Waits until no export is running.
    pub async fn exports_ended(&self) {
        // The sender is ours, so the channel does not close.
        let _ = self.exports.subscribe().wait_for(|running| *running == 0).await;
    }

    /// Keeps what a replica needs that is building the state of `checkpoint`.
    pub fn hold(&self, checkpoint: &SignedCheckpoint) -> Hold {
        self.holds.begin(&checkpoint.checkpoint)
    }

    /// What is held at present.
    pub fn holds(&self) -> &Holds {
        &self.holds
    }

    /// Makes the applied state durable in the background of reads, then trims the log and prunes
    /// operations. Called now and then by the owner.
    pub async fn maintain(&self, history: History) -> Result<(), Error> {
        self.log.check_guard()?;
        let (handle, sequence) = {
            let mut database = self.database.write().await;
            let sequence = self.head.borrow().checkpoint.sequence;
            if sequence == self.durable.load(Ordering::Acquire) {
                (None, sequence)
            } else {
                (Some(database.start_sync().await?), sequence)
            }
        };
        if let Some(handle) = handle {
            handle.await.map_err(|error| database::Error::Storage(error.to_string()))?;
            self.durable.store(sequence, Ordering::Release);
        }
        self.trim(history).await?;
        self.prune(history).await
    }

    async fn trim(&self, history: History) -> Result<(), Error> {
        let mut keep_from = self.durable.load(Ordering::Acquire);
        let segments = history.log.segments;
        let segments_max = segments.saturating_add(segments / HOLD_SEGMENTS_PART);
        if self.log.bytes() <= history.log.bytes.saturating_add(HOLD_BYTES_MAX)
            && self.log.segments() <= segments_max
        {
            keep_from = keep_from.min(self.holds.sequence().unwrap_or(u64::MAX));
        }
        Ok(self.log.trim(history.log, keep_from).await?)
    }

    async fn prune(&self, history: History) -> Result<(), Error> {
        if self.place.mode == Mode::Compact {
            return self.prune_frontiers().await;
        }
        let Some(retained) = history.operations else { return Ok(()) };
        let floor = self.head.borrow().checkpoint.floor;
        let location = self.holds.prune_at(floor.saturating_sub(retained));
        let mut database = self.database.write().await;
        // Files are dropped as a whole; asking for less than one is only work.
        if location >= database.retained_from()? + PRUNE_STEP {
            database.prune(location).await?;
        }
        Ok(())
    }

    /// A compact database keeps a frontier for each commit: those are enough that it may be opened
    /// at, or asked for. Whatever the retention of the log and the rate of commits, it keeps at most
    /// [`FRONTIERS_KEPT`] below the newest durable one and [`FRONTIERS_STEP`] to be dropped; a short
    /// log has fewer, because a replica cannot follow from before its first record.
    async fn prune_frontiers(&self) -> Result<(), Error> {
        let Bounds { first, .. } = self.log.bounds();
        let keep_from = self.durable.load(Ordering::Acquire).saturating_sub(FRONTIERS_KEPT);
        let keep_from = keep_from.max(first);
        if keep_from < self.pruned.load(Ordering::Relaxed) + FRONTIERS_STEP {
            return Ok(());
        }
        let size = self.log.read(keep_from).await?.state().size;
        self.database.write().await.prune(size).await?;
        self.pruned.store(keep_from, Ordering::Relaxed);
        Ok(())
    }

    /// Makes log and database durable so that opening has nothing to repair.
    pub async fn sync(&self) -> Result<(), Error> {
        self.log.sync().await?;
        let mut database = self.database.write().await;
        database.sync().await?;
        self.durable.store(self.head.borrow().checkpoint.sequence, Ordering::Release);
        Ok(())
    }

    /// Whether the database can be read; after some failures it cannot.
    pub async fn is_readable(&self) -> bool {
        self.database.read().await.state().is_ok()
    }

    /// Whether commits can be made; after any failure they cannot.
    pub async fn is_whole(&self) -> bool {
        self.log.is_open().await && self.is_readable().await
    }

    /// Where it is.
    pub const fn place(&self) -> Place {
        self.place
    }

    /// Gives the storage back. Reads and commits fail from here on.
    pub async fn close(&self) {
        self.log.close().await;
        *self.database.write().await = Box::new(database::Closed);
    }
}

/// Newest commits whose traces are remembered.
const TRACES_MAX: usize = 256;
/// Commits below the newest durable one whose frontiers a compact database keeps at most.
pub const FRONTIERS_KEPT: u64 = 1024;
/// After how many more it drops others.
const FRONTIERS_STEP: u64 = 256;
/// Operations below which pruning is not worth its cost.
const PRUNE_STEP: u64 = 32_768;
