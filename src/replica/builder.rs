//! How a replica is opened, and the thread that it works on.

use super::{Ended, Replica};
use crate::{
    checkpoint::{Policy, Rotations},
    client::{
        core::{self, Core, Ended as CoreEnded, Setup},
        reader::Reader,
        sync_loop::{Config as LoopConfig, Pace},
    },
    commit_log::Retention,
    database::types::{Family, Mode},
    directory::{self, DirectoryError, DirectoryLock, LayoutError, Role},
    keys,
    ledger::History,
    link::{self, Connector},
    replicate::state_sync,
    verify::Trust,
    watch,
};
use commonware_cryptography::ed25519::{PrivateKey, PublicKey};
use commonware_runtime::{
    Runner as _, Supervisor as _,
    tokio::{Config as RuntimeConfig, Context, Runner},
};
use std::{
    num::{NonZeroU64, NonZeroUsize},
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::oneshot;

/// Longest that one read or write of a connection may take.
const NETWORK_TIMEOUT: Duration = Duration::from_secs(60);
/// Operations per request of a state sync.
const BATCH: NonZeroU64 = NonZeroU64::new(1000).expect("not zero");
/// Requests of a state sync in flight.
const OUTSTANDING: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");

/// A server to replicate from. It is not trusted: what it sends counts only if the publisher signed it.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where it listens for replicas, as `HOST:PORT`. A name is resolved again at each connection.
    pub address: String,
    /// Its transport key: `identity.pub` in its `public` directory.
    pub key: PublicKey,
}

/// What a replica is opened with.
#[derive(Clone, Debug)]
#[must_use = "call open"]
pub struct Builder {
    directory: PathBuf,
    server: Server,
    trust: Trust,
    family: Family,
    mode: Mode,
    identity: Option<PrivateKey>,
    age_max: Duration,
    skew: Duration,
    log: Retention,
    operations: Option<u64>,
    threads: usize,
}

/// Why a replica cannot be opened. Nothing was changed, except that the directory may have been made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A value of the builder.
    #[error("{0}")]
    Invalid(String),
    /// The directory is in use, or cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The directory belongs to something else, or has another layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The replica's own key.
    #[error(transparent)]
    Key(#[from] keys::Error),
    /// The file system.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What the directory holds.
    #[error(transparent)]
    Storage(#[from] core::Error),
    /// A panic, which the panic hook has reported.
    #[error("the replica panicked while it was opened")]
    Panicked,
}

impl Builder {
    pub(super) fn new(directory: &Path, server: Server, trust: Trust) -> Self {
        Self {
            directory: directory.to_path_buf(),
            server,
            trust,
            family: Family::Any,
            mode: Mode::Full,
            identity: None,
            age_max: Duration::from_secs(60),
            skew: Duration::from_secs(10),
            log: Retention { age: Duration::from_secs(600), bytes: 256 << 20, segments: 64 },
            operations: None,
            threads: 2,
        }
    }

    /// The family of the database: the server's. Default: `any`.
    pub const fn family(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    /// Whether values are kept, or only what verifies the next commit. Default: [`Mode::Full`].
    pub const fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// The replica's transport key. Default: `identity.key` in the directory, made if need be. A server with a list of
    /// authorized clients needs its public half.
    pub fn identity(mut self, key: PrivateKey) -> Self {
        self.identity = Some(key);
        self
    }

    /// The oldest signature that is accepted as the first state. Default: 60 s.
    pub const fn age_max(mut self, age: Duration) -> Self {
        self.age_max = age;
        self
    }

    /// How far clocks may differ. Default: 10 s.
    pub const fn skew(mut self, skew: Duration) -> Self {
        self.skew = skew;
        self
    }

    /// How much of the commit log is kept for a restart and for others. Default: 10 minutes, 256 MiB, 64 segments (each
    /// takes two file descriptors).
    pub const fn log(mut self, retention: Retention) -> Self {
        self.log = retention;
        self
    }

    /// How many operations below the floor are kept for proofs of the past. Default: all.
    pub const fn operations(mut self, retained: Option<u64>) -> Self {
        self.operations = retained;
        self
    }

    /// Threads that the replica works on. Default: 2.
    pub const fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Opens the replica. It serves what the directory holds at once, and connects in the background.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what is wrong with the builder, the directory or what it holds. A server that cannot be reached
    /// is no error: [`Replica::status`] tells.
    pub async fn open(self) -> Result<Replica, OpenError> {
        let (host, port) = self.check()?;
        let (ready, opened) = oneshot::channel();
        let (stop, stopped) = watch::channel(false);
        let (tell, ended) = watch::channel(None);
        let directory = self.directory.clone();
        let failed = |source| OpenError::Io { path: directory.clone(), source };
        std::thread::Builder::new()
            .name("syncd-replica".into())
            .spawn(move || {
                let why = run(self, host, port, ready, stopped);
                tell.send_replace(Some(why));
            })
            .map_err(failed)?;
        // The thread says nothing only if it panicked.
        let reader = opened.await.map_err(|_| OpenError::Panicked)??;
        Ok(Replica { reader: Some(reader), stop, ended })
    }

    fn check(&self) -> Result<(String, u16), OpenError> {
        let invalid = |text: String| Err(OpenError::Invalid(text));
        let Some(address) = link::host_and_port(&self.server.address) else {
            return invalid(format!("server '{}': allowed is HOST:PORT", self.server.address));
        };
        if self.trust.publishers.is_empty() {
            return invalid("no publisher key is trusted: at least one is needed".into());
        }
        if self.mode == Mode::Compact && !matches!(self.family, Family::Immutable | Family::Keyless)
        {
            return invalid(format!("family '{}' cannot be compact", self.family));
        }
        if self.threads == 0 {
            return invalid("0 threads: at least one is needed".into());
        }
        Ok(address)
    }

    /// Takes the directory; gives its lock, and what the replica is made of.
    fn take(&self, host: String, port: u16) -> Result<(DirectoryLock, Setup), OpenError> {
        let io = |source| OpenError::Io { path: self.directory.clone(), source };
        directory::prepare(&self.directory).map_err(io)?;
        let lock = DirectoryLock::take(&self.directory)?;
        directory::claim(&self.directory, Role::Client)?;
        let data = directory::data_dir(&self.directory);
        let identity = match &self.identity {
            Some(key) => key.clone(),
            None => keys::load_or_create_private(&self.directory.join("identity.key"))?,
        };
        let connector =
            Connector { host, port, server: self.server.key.clone(), identity, skew: self.skew };
        let setup = Setup {
            connector,
            policy: Policy {
                publishers: self.trust.publishers.clone(),
                database: self.trust.database,
                family: self.family,
                rotations: Rotations::default(),
            },
            sync: LoopConfig {
                pace: Pace::PUSH,
                state_sync: state_sync::Config {
                    batch: BATCH,
                    outstanding: OUTSTANDING,
                    mode: self.mode,
                },
                age_max: self.age_max,
                skew: self.skew,
                history: History { log: self.log, operations: self.operations },
            },
            directory: self.directory.clone(),
            guard: directory::guard(&self.directory, &data).map_err(io)?,
            room: directory::room(&data),
        };
        Ok((lock, setup))
    }
}

/// What [`Builder::open`] waits for.
type Ready = oneshot::Sender<Result<Reader<Context>, OpenError>>;

/// Takes the directory, works until it is told to stop or cannot go on, and gives the directory back.
fn run(
    builder: Builder,
    host: String,
    port: u16,
    ready: Ready,
    stop: watch::Receiver<bool>,
) -> Ended {
    let (_lock, setup) = match builder.take(host, port) {
        Ok(taken) => taken,
        Err(error) => {
            let ended = Ended::Storage(error.to_string());
            let _ = ready.send(Err(error));
            return ended;
        }
    };
    let config = RuntimeConfig::default()
        .with_storage_directory(directory::data_dir(&builder.directory))
        .with_worker_threads(builder.threads)
        .with_read_write_timeout(NETWORK_TIMEOUT);
    let work = || Runner::new(config).start(|context| work(context, setup, ready, stop));
    std::panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Ended::Unexpected("it panicked".into()))
}

async fn work(
    context: Context,
    setup: Setup,
    ready: Ready,
    mut stop: watch::Receiver<bool>,
) -> Ended {
    let registry = context.child("syncd");
    let mut core = match core::start(context.child("client"), &registry, setup).await {
        Ok(core) => core,
        Err(error) => {
            let ended = Ended::Storage(error.to_string());
            let _ = ready.send(Err(error.into()));
            return ended;
        }
    };
    let reader = Reader::new(context.child("reader"), core.replica.clone());
    if ready.send(Ok(reader)).is_err() {
        // Nobody waits for it any more.
        return drain(core, Ended::Closed).await;
    }
    let ended = tokio::select! {
        // Also when the handle is gone.
        _ = stop.wait_for(|stop| *stop) => Ended::Closed,
        ended = core.ended(true) => match ended {
            CoreEnded::Fatal(fatal) => Ended::Refused(fatal.to_string()),
            CoreEnded::Storage(error) => return Ended::Storage(error.to_string()),
            CoreEnded::Unexpected(text) => return Ended::Unexpected(text),
        },
    };
    drain(core, ended).await
}

async fn drain(core: Core<Context>, ended: Ended) -> Ended {
    match core.drain().await {
        Ok(()) => ended,
        Err(error) => Ended::Storage(error.to_string()),
    }
}
