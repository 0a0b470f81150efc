//! A server without its edges: storage, publisher, generator, listener. Runs on any runtime.

use super::{
    generator,
    metrics::Metrics,
    opening::{self, Opened},
    publisher,
    state::Record,
};
use crate::{
    checkpoint::{Identity, Rotations, SignedCheckpoint},
    database::{self, Kind, Place, types::Mode},
    ledger::{self, History, Ledger},
    runtime::{Runtime, StorageGuard},
    serve::{self, Amnesia, Authorized, limits::Limits},
    storage_record,
    telemetry::storage::StorageErrors,
};
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// The one generation of a server's storage.
pub const GENERATION: u64 = 0;

/// Where a server's database is.
pub const fn place(storage: Mode) -> Place {
    Place { generation: GENERATION, mode: storage }
}

/// How a server works.
#[derive(Clone)]
pub struct Setup {
    /// Transport key.
    pub identity: PrivateKey,
    /// The key that signs.
    pub publisher: PrivateKey,
    /// Family and hash. The hash counts for a new database only, if `hash_is_chosen` is false.
    pub kind: Kind,
    /// Which replicas are served.
    pub mode: Mode,
    /// How much the server keeps.
    pub storage: Mode,
    /// Whether the hash was asked for by name.
    pub hash_is_chosen: bool,
    /// Operations generated in a new database.
    pub initial_operations: u64,
    /// The generator.
    pub generator: Generator,
    /// How much history is kept.
    pub history: History,
    /// How often an unchanged state is signed again.
    pub heartbeat_interval: Duration,
    /// Write requests that may wait.
    pub queue_requests_max: usize,
    /// Who may connect.
    pub authorized: Authorized,
    /// What replicas may use.
    pub limits: Limits,
    /// Whether the storage is where it was.
    pub guard: StorageGuard,
}

/// How the generator works.
#[derive(Clone, Copy, Debug)]
pub struct Generator {
    /// Time between two of its commits.
    pub interval: Duration,
    /// Changes of a commit; 0 turns it off.
    pub changes: usize,
    /// Whether that was asked for: a default never writes to a database made without it.
    pub is_chosen: bool,
}

/// What an operator does about a damaged or incomplete storage.
const RESTORE_OR_EPOCH: &str = "nothing was changed: restore the whole directory from its newest copy (where that is older than what was signed, 'syncctl new-epoch' follows)";

/// Why a server cannot start, or has to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Log or database.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The record of the storage.
    #[error("{0}; {RESTORE_OR_EPOCH}")]
    Record(#[from] storage_record::Error),
    /// A new epoch would lose what cannot be read.
    #[error(
        "{0}. Nothing was changed. Where it cannot be repaired, 'syncctl new-epoch --discard-unreadable' goes on with the database as it is and says what is lost"
    )]
    Unreadable(Box<Error>),
    /// The storage holds another database than was asked for, or an unfinished epoch.
    #[error("{0}")]
    Mismatch(String),
    /// Something that every storage has is not there, while the rest is.
    #[error("{0} missing from the storage directory, while the rest is there; {RESTORE_OR_EPOCH}")]
    Missing(String),
    /// This server signed a state that it does not know any more.
    #[error(
        "this server forgot: a client holds commit {sequence} (root {root}), signed by this publisher key, which the storage does not have; it was restored from an older copy, or another server uses the key. Restore the newest copy, or make a new identity with 'syncctl new-epoch'"
    )]
    Amnesia {
        /// The sequence of the claim.
        sequence: u64,
        /// Its root.
        root: database::types::Root,
    },
    /// The first operations could not be generated.
    #[error("cannot generate the first operations: {0}")]
    Generate(String),
}

impl From<database::Error> for Error {
    fn from(error: database::Error) -> Self {
        Self::Ledger(error.into())
    }
}

impl Error {
    /// Whether the data are the reason, rather than the disk.
    pub const fn is_damage(&self) -> bool {
        match self {
            Self::Ledger(error) => error.is_damage(),
            Self::Record(error) => error.is_damage(),
            Self::Missing(_) | Self::Mismatch(_) | Self::Amnesia { .. } => true,
            Self::Unreadable(error) => error.is_damage(),
            Self::Generate(_) => false,
        }
    }
}

/// A server at work.
pub struct Core<E: Runtime> {
    /// The identity of its database.
    pub identity: Identity,
    /// How the publisher's keys followed each other.
    pub rotations: Rotations,
    /// What it serves.
    pub ledger: Arc<Ledger<E>>,
    /// The way to the publisher; dropping every copy ends it.
    pub publisher: publisher::Handle,
    /// Ends with the publisher.
    pub publishing: commonware_runtime::Handle<Result<(), ledger::Error>>,
    /// The listener.
    pub serving: serve::Handle,
    /// Claims of clients that show that this server forgot.
    pub amnesia: mpsc::Receiver<SignedCheckpoint>,
    generating: Option<commonware_runtime::Handle<()>>,
}

/// Opens the storage and starts everything. `registry` names the metrics.
pub async fn start<E: Runtime>(
    context: E,
    registry: &E,
    setup: Setup,
    listener: <E as commonware_runtime::Network>::Listener,
) -> Result<Core<E>, Error> {
    let errors = StorageErrors::new(registry);
    let opened = opening::open(&context, &setup, &errors).await?;
    let Opened { record, is_new, rotations, ledger, idempotency } = opened;
    let identity = record.identity();
    ledger.guard_with(&setup.guard.with(&opening::record_partitions()));
    let ledger = Arc::new(ledger);
    let server = registry.child("server");
    let (metrics, serve_metrics) = Metrics::new(&server, errors.clone());
    let head = ledger.head().checkpoint;
    metrics.size.set(i64::try_from(head.size).unwrap_or(i64::MAX));
    metrics.sequence.set(i64::try_from(head.sequence).unwrap_or(i64::MAX));
    let config = publisher::Config {
        key: setup.publisher.clone(),
        queue_requests_max: setup.queue_requests_max,
        heartbeat_interval: setup.heartbeat_interval,
        history: setup.history,
    };
    let (publisher, publishing) = publisher::spawn(
        context.child("publisher"),
        config,
        ledger.clone(),
        idempotency,
        Arc::new(metrics),
        errors,
    );
    let is_blind = publisher.is_blind();
    if is_new && !is_blind {
        let (rule, count) = (setup.kind.write_rule(), setup.initial_operations);
        generator::fill(context.child("generator"), &publisher, rule, count)
            .await
            .map_err(|error| Error::Generate(error.to_string()))?;
    }
    let (amnesia, serving) =
        serve(&context, &setup, rotations.clone(), &ledger, serve_metrics, listener);
    let generating = if is_blind { None } else { generate(&context, &setup, &record, &publisher) };
    Ok(Core { identity, rotations, ledger, publisher, publishing, serving, amnesia, generating })
}

fn serve<E: Runtime>(
    context: &E,
    setup: &Setup,
    rotations: Rotations,
    ledger: &Arc<Ledger<E>>,
    metrics: serve::Metrics,
    listener: <E as commonware_runtime::Network>::Listener,
) -> (mpsc::Receiver<SignedCheckpoint>, serve::Handle) {
    let (tell, amnesia) = mpsc::channel(1);
    let tell: Amnesia = Arc::new(move |claim| {
        let _ = tell.try_send(claim);
    });
    let config = serve::Config {
        identity: setup.identity.clone(),
        authorized: setup.authorized.clone(),
        mode: setup.mode,
        limits: setup.limits,
        heartbeat_interval: setup.heartbeat_interval,
        publisher: Some((setup.publisher.public_key(), tell)),
        rotations,
    };
    let serving = serve::spawn(context.child("serve"), config, ledger.clone(), metrics, listener);
    (amnesia, serving)
}

fn generate<E: Runtime>(
    context: &E,
    setup: &Setup,
    record: &Record,
    publisher: &publisher::Handle,
) -> Option<commonware_runtime::Handle<()>> {
    let Generator { interval, changes, is_chosen } = setup.generator;
    if changes == 0 {
        return None;
    }
    if !record.generated && !is_chosen {
        tracing::info!("the generator is off: this database was made without it");
        return None;
    }
    let (publisher, rule) = (publisher.clone(), setup.kind.write_rule());
    let task = context
        .child("generator")
        .spawn(move |context| generator::run(context, publisher, rule, interval, changes));
    Some(task)
}

impl<E: Runtime> Core<E> {
    /// Ends in order: no new writes, what is queued is committed, sessions finish, the storage is
    /// synced. The caller must have dropped its own copies of the publisher's handle.
    pub async fn drain(self) -> Result<(), Error> {
        if let Some(task) = &self.generating {
            task.abort();
        }
        drop(self.publisher);
        match self.publishing.await {
            Ok(result) => result?,
            Err(error) => tracing::debug!(%error, "the publisher was aborted"),
        }
        self.serving.drain().await;
        Ok(self.ledger.sync().await?)
    }
}
