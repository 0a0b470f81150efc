//! A client without its edges: storage, connection, loop. Runs on any runtime.

use super::{
    connection::Connection,
    disk::{self, Disk, UPKEEP_ROOM},
    freshness::Freshness,
    known::{Known, Policies},
    metrics::{DirectionLabel, Metrics},
    phase::{Fatal, Phase, StallReason},
    pin,
    state::ReplicaState,
    sync_loop::{Config as LoopConfig, StorageFailure, SyncLoop},
};
use crate::watch;
use crate::{
    checkpoint::{Policy, Refusal, SignedCheckpoint},
    checkpoints::CheckpointStore,
    commit_log::CommitLog,
    database::{
        self, Generations, Place,
        types::{DatabaseId, Family, Mode},
    },
    ledger::{self, Ledger},
    link::Connector,
    rotations::RotationStore,
    runtime::{Runtime, StepWatch, StorageGuard, StorageRoom},
    storage_record,
    telemetry::storage::StorageErrors,
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// How often the metrics are brought up to date.
const MEASURE_INTERVAL: Duration = Duration::from_millis(250);
/// How often log and database are looked after.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);

/// How a client works.
pub struct Setup {
    /// How to reach the server.
    pub connector: Connector,
    /// What is trusted.
    pub policy: Policy,
    /// The loop.
    pub sync: LoopConfig,
    /// Where evidence is written.
    pub directory: PathBuf,
    /// Whether the storage is where it was.
    pub guard: StorageGuard,
    /// Whether the storage has room.
    pub room: StorageRoom,
}

/// What an operator does about a damaged or incomplete storage.
const RESTORE_OR_EMPTY: &str = "nothing was changed: restore the whole directory from a copy, or give the replica an empty one, which trusts anew what the server shows";

/// Why a client cannot start, or has to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Log or database.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// A record of the storage.
    #[error("{0}; {RESTORE_OR_EMPTY}")]
    Record(#[from] storage_record::Error),
    /// Something that every storage has is not there, while the rest is.
    #[error("{0} missing from the storage directory, while the rest is there; {RESTORE_OR_EMPTY}")]
    Missing(String),
    /// The storage is pinned to another database.
    #[error(
        "this storage directory is pinned to database {pinned}, but {configured} is configured; a changed identity is adopted only by hand: 'syncctl adopt-database'"
    )]
    Pinned {
        /// The pinned one.
        pinned: DatabaseId,
        /// The configured one.
        configured: DatabaseId,
    },
    /// The storage was never a client's.
    #[error("the storage directory holds no replica")]
    NotPinned,
    /// The storage is of another family.
    #[error("the storage holds a replica of family '{found}', but '{configured}' is configured")]
    Family {
        /// The family found.
        found: Family,
        /// The configured one.
        configured: Family,
    },
    /// The stored state is nobody's who is trusted now.
    #[error(
        "the stored state, commit {sequence}, does not count under the configuration: {refusal}; trust the key if it is the publisher's, or give the replica another directory"
    )]
    Untrusted {
        /// Its sequence.
        sequence: u64,
        /// Why.
        refusal: Refusal,
    },
    /// The storage was laid out by another version.
    #[error("the storage has layout version {found}; this program has {ours}")]
    Layout {
        /// The version found.
        found: u8,
        /// This program's.
        ours: u8,
    },
}

impl From<database::Error> for Error {
    fn from(error: database::Error) -> Self {
        Self::Ledger(error.into())
    }
}

impl From<StorageFailure> for Error {
    fn from(error: StorageFailure) -> Self {
        match error {
            StorageFailure::Ledger(error) | StorageFailure::Final(error) => Self::Ledger(error),
        }
    }
}

impl Error {
    /// Whether the data are the reason, rather than the disk.
    pub const fn is_damage(&self) -> bool {
        match self {
            Self::Ledger(error) => error.is_damage(),
            Self::Record(error) => error.is_damage(),
            Self::Missing(_)
            | Self::Pinned { .. }
            | Self::NotPinned
            | Self::Family { .. }
            | Self::Untrusted { .. }
            | Self::Layout { .. } => true,
        }
    }
}

/// A client at work.
pub struct Core<E: Runtime> {
    /// Shared state.
    pub replica: Arc<ReplicaState<E>>,
    /// Ends with the loop.
    pub looping: commonware_runtime::Handle<Result<(), StorageFailure>>,
    /// Ends with the first failure of the upkeep.
    pub upkeep: commonware_runtime::Handle<ledger::Error>,
    /// Reasons to end: a mismatch with nothing to serve, or an equivocation.
    pub fatal: mpsc::Receiver<Fatal>,
    stop: watch::Sender<bool>,
    tasks: Vec<commonware_runtime::Handle<()>>,
}

/// Opens the storage and starts everything. `registry` names the metrics.
pub async fn start<E: Runtime>(context: E, registry: &E, setup: Setup) -> Result<Core<E>, Error> {
    let Setup { connector, mut policy, sync, directory, guard, room } = setup;
    let errors = StorageErrors::new(registry);
    let pin_was_repaired = pin::check(&context, &policy).await?;
    let guard = guard.with(&pin::partitions());
    let disk = Disk::new(guard.clone(), room, errors.clone());
    let rotations = RotationStore::of_replica(context.child("publisher_keys")).await?;
    let learned = rotations.all();
    let of_storage = policy.of_storage(&learned);
    if let Err(refusal) = policy.learn(&learned) {
        // Other keys are trusted now than when they were learned.
        tracing::warn!(%refusal, "rotations of the publisher key learned before do not count");
    }
    let mut generations = Generations::open(context.child("generations")).await?;
    let (family, mode) = (policy.family, sync.state_sync.mode);
    let Opened { ledger, history, own } =
        open_replica(&context, &disk, &mut generations, family, mode).await?;
    let ledger = ledger.map(Arc::new);
    generations.guard_with(guard.clone());
    if let Some(ledger) = &ledger {
        ledger.guard_with(&guard);
    }
    if let Some(own) = &own {
        // Before anything of it is served.
        let verified = of_storage.clone().and_then(|policy| policy.verify(own));
        let sequence = own.checkpoint.sequence;
        verified.map_err(|refusal| Error::Untrusted { sequence, refusal })?;
    }
    let metrics = Arc::new(Metrics::new(&registry.child("client")));
    let store = CheckpointStore::open(context.child("newest")).await?;
    for was_repaired in [
        pin_was_repaired,
        rotations.was_repaired(),
        generations.was_repaired(),
        store.was_repaired(),
    ] {
        if was_repaired {
            errors.count("record");
        }
    }
    let database = policy.database;
    let now = context.moment();
    let freshness = Freshness::new(sync.skew, now);
    let own = own.as_ref();
    let of_storage = of_storage.unwrap_or_else(|_| policy.clone());
    let policies = Policies { of_peers: policy, of_storage };
    let known = Known::new(policies, store, rotations, own, directory, metrics.clone(), freshness);
    if let (Some(ledger), Some(newest)) = (&ledger, known.newest()) {
        // The log has the signature that the state was made with; a better one may be known.
        ledger.resign(newest);
    }
    let server = format!("{}:{}", connector.host, connector.port);
    let replica = Arc::new(ReplicaState::new(
        ledger,
        history,
        known,
        disk,
        metrics,
        family,
        mode,
        server,
        sync.skew,
        now.monotonic,
    ));
    let (sessions, session) = watch::channel(None);
    let (links, link) = watch::channel(None);
    let (tell, fatal) = mpsc::channel(4);
    let (stop, stopped) = watch::channel(false);
    let history = sync.history;
    let connection = Connection {
        connector,
        database,
        replica: replica.clone(),
        sessions,
        links,
        fatal: tell.clone(),
    };
    let sync_loop = SyncLoop {
        context: context.child("loop"),
        config: sync,
        replica: replica.clone(),
        generations,
        sessions: session,
        links: link,
        fatal: tell,
        stop: stopped,
    };
    let connecting = context.child("connection").spawn(move |context| connection.run(context));
    let looping = context.child("loop").spawn(move |_| sync_loop.run());
    let measured = replica.clone();
    let measuring = context.child("measure").spawn(move |context| measure(context, measured));
    let kept = replica.clone();
    let upkeep = context.child("upkeep").spawn(move |context| maintain(context, kept, history));
    let tasks = vec![connecting, measuring];
    Ok(Core { replica, looping, upkeep, fatal, stop, tasks })
}

async fn measure<E: Runtime>(context: E, replica: Arc<ReplicaState<E>>) {
    let mut clock = StepWatch::new(context.moment());
    loop {
        if let Some(step) = clock.look(context.moment()) {
            let direction = step.direction();
            let seconds = step.by().as_secs_f64();
            tracing::warn!(
                direction,
                seconds,
                "the clock of this machine stepped: freshness is judged by it"
            );
            replica.metrics.clock_steps.get_or_create(&DirectionLabel { direction }).inc();
        }
        replica.measure(context.moment());
        context.sleep(MEASURE_INTERVAL).await;
    }
}

/// Looks after log and database until the storage is damaged or gone. What the disk cannot do now is tried again.
async fn maintain<E: Runtime>(
    context: E,
    replica: Arc<ReplicaState<E>>,
    history: ledger::History,
) -> ledger::Error {
    loop {
        context.sleep(MAINTENANCE_INTERVAL).await;
        let disk = &replica.disk;
        if let Err(gone) = disk.guard.check() {
            disk.errors.count("maintain");
            return database::Error::Gone(gone).into();
        }
        // What was heard of while the last one was written down is not forgotten in a crash either.
        if disk.check(UPKEEP_ROOM).is_ok() {
            replica.known.keep_now_and_then(context.moment()).await;
        }
        let Some(ledger) = replica.ledger.load_full() else { continue };
        // Without room the loop says so; a write that fails half way would cost the reads.
        if disk.check(UPKEEP_ROOM).is_err() && ledger.is_whole().await {
            continue;
        }
        let Err(error) = ledger.maintain(history).await else { continue };
        let current = replica.ledger.load_full();
        if !current.is_some_and(|current| Arc::ptr_eq(&current, &ledger)) {
            // Closed in favour of a new generation while this ran.
            continue;
        }
        disk.errors.count("maintain");
        if !disk::is_passing(&error) {
            return error;
        }
        tracing::warn!(%error, "the upkeep of the storage failed: it is opened again");
        match replica.reopen(&context, &ledger).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                replica.set_phase(Phase::Stalled(StallReason::Storage), context.monotonic());
                replica.set_error(Some(error.to_string()));
            }
            Err(error) => return error,
        }
    }
}

/// What of a replica could be opened.
struct Opened<E: Runtime> {
    ledger: Option<Ledger<E>>,
    /// The log of a replica whose database cannot be opened.
    history: Option<CommitLog<E>>,
    /// The newest state that was verified: it binds the replica in either case.
    own: Option<SignedCheckpoint>,
}

/// Opens the active generation, and removes what the pointer does not name.
async fn open_replica<E: Runtime>(
    context: &E,
    disk: &Disk,
    generations: &mut Generations<E>,
    family: Family,
    mode: Mode,
) -> Result<Opened<E>, Error> {
    generations.sweep(context, family).await?;
    disk::remove_probe(context).await?;
    let Some(active) = generations.active() else {
        return Ok(Opened { ledger: None, history: None, own: None });
    };
    let place = Place { generation: active, mode };
    match disk.open(context, place).await {
        Ok(Some(ledger)) if ledger.kind().family != family => {
            Err(Error::Family { found: ledger.kind().family, configured: family })
        }
        Ok(ledger) => {
            let own = ledger.as_ref().map(Ledger::head);
            Ok(Opened { ledger, history: None, own })
        }
        // The log is the truth of what was verified; a database that does not fit it, or cannot
        // be executed up to it, is built anew by a state sync.
        Err(
            error @ (ledger::Error::Lost { .. }
            | ledger::Error::Diverged { .. }
            | ledger::Error::ExecutionVersion { .. }),
        ) => {
            let here = context.child("history");
            let history =
                CommitLog::open(here, active, |_| {}).await.map_err(ledger::Error::from)?;
            let own = match &history {
                Some(log) => {
                    let newest = log.read(log.bounds().last).await.map_err(ledger::Error::from)?;
                    Some(newest.checkpoint)
                }
                None => None,
            };
            tracing::warn!(
                %error,
                sequence = own.as_ref().map(|own| own.checkpoint.sequence),
                "the replica cannot be opened at its last verified state: syncing it again"
            );
            Ok(Opened { ledger: None, history, own })
        }
        Err(error) => Err(error.into()),
    }
}

/// Why a client ends by itself.
#[derive(Debug)]
pub enum Ended {
    /// What a server showed.
    Fatal(Fatal),
    /// Its storage.
    Storage(Error),
    /// A task ended that never does.
    Unexpected(String),
}

impl<E: Runtime> Core<E> {
    /// Waits until the client cannot go on. With `serves_on`, an equivocation of the publisher is no reason: the last
    /// verified state is served on.
    pub async fn ended(&mut self, serves_on: bool) -> Ended {
        loop {
            tokio::select! {
                Some(fatal) = self.fatal.recv() => {
                    if !(serves_on && matches!(fatal, Fatal::Equivocation(_))) {
                        return Ended::Fatal(fatal);
                    }
                }
                result = &mut self.looping => return match result {
                    Ok(Ok(())) => Ended::Unexpected("the loop ended by itself".into()),
                    Ok(Err(error)) => Ended::Storage(error.into()),
                    Err(error) => Ended::Unexpected(format!("the loop ended: {error}")),
                },
                error = &mut self.upkeep => return match error {
                    Ok(error) => Ended::Storage(error.into()),
                    Err(error) => Ended::Unexpected(format!("the upkeep ended: {error}")),
                },
            }
        }
    }

    /// Ends in order: the loop stops between two commits and syncs the storage.
    pub async fn drain(self) -> Result<(), Error> {
        self.stop.send_replace(true);
        let result = self.looping.await;
        for task in self.tasks {
            task.abort();
        }
        self.upkeep.abort();
        match result {
            Ok(result) => Ok(result?),
            Err(error) => {
                tracing::debug!(%error, "the loop was aborted");
                Ok(())
            }
        }
    }
}
