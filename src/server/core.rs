//! A server without its edges: storage, publisher, generator, listener. Runs on any runtime.

use super::{
    generator,
    idempotency::Idempotency,
    metrics::Metrics,
    publisher,
    state::{Record, State},
};
use crate::{
    checkpoint::{
        Checkpoint, Identity, Parameters, RotationStore, Rotations, SignedCheckpoint, unix_ms,
    },
    database::{self, Kind, OpenAt, Place, types::Mode},
    ledger::{self, History, Ledger},
    runtime::Runtime,
    serve::{self, Amnesia, Authorized, limits::Limits},
    telemetry::storage::StorageErrors,
};
use commonware_cryptography::{
    Signer as _,
    ed25519::{PrivateKey, PublicKey},
};
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

/// Why a server cannot start, or has to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Log or database.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The record of the storage.
    #[error("storage record: {0}")]
    Record(#[from] commonware_storage::metadata::Error),
    /// The storage holds another database than was asked for, or an unfinished epoch.
    #[error("{0}")]
    Mismatch(String),
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
            Self::Record(error) => {
                matches!(error, commonware_storage::metadata::Error::Corruption(_))
            }
            Self::Mismatch(_) | Self::Amnesia { .. } => true,
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
    let (state, record, is_new) = open_record(&context, &setup).await?;
    let identity = record.identity();
    let rotations = RotationStore::of_publisher(context.child("publisher_keys")).await?.all();
    let (ledger, idempotency) = open_ledger(&context, &setup, &record, is_new).await?;
    check_publisher(&ledger.head(), &rotations, &setup.publisher.public_key())?;
    // Written last: what has no record is no database, and is made again.
    if is_new {
        state.put(record.clone()).await?;
    }
    let ledger = Arc::new(ledger);
    let server = registry.child("server");
    let errors = StorageErrors::new(registry);
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

/// The record of the storage, or that of a new database.
async fn open_record<E: Runtime>(
    context: &E,
    setup: &Setup,
) -> Result<(State<E>, Record, bool), Error> {
    let state = State::open(context.child("state")).await?;
    if let Some(record) = state.get() {
        check_record(&record, setup)?;
        return Ok((state, record, false));
    }
    let mut random = [0; 32];
    rand_core::Rng::fill_bytes(&mut context.child("random"), &mut random);
    let Kind { family, hash } = setup.kind;
    let genesis = setup.publisher.public_key();
    let parameters = Parameters::new(random, genesis, family, hash);
    let generated = setup.generator.changes > 0;
    let storage = setup.storage;
    Ok((state, Record { parameters, generated, storage, epoch_pending: false }, true))
}

/// The storage must hold what was asked for, in a form that this program knows.
fn check_record(record: &Record, setup: &Setup) -> Result<(), Error> {
    let mismatch = |text: String| Err(Error::Mismatch(text));
    let found = &record.parameters;
    let ours = Parameters::new([0; 32], found.genesis.clone(), found.family, found.hash);
    if record.epoch_pending {
        return mismatch("'syncctl new-epoch' was interrupted: run it again".into());
    }
    if (found.merkle, found.codec, found.layout) != (ours.merkle, ours.codec, ours.layout) {
        return mismatch(format!(
            "the storage has layout {}, codec {}, merkle shape {}; this program has {}, {}, {}",
            found.layout, found.codec, found.merkle, ours.layout, ours.codec, ours.merkle
        ));
    }
    if found.family != setup.kind.family {
        return mismatch(format!(
            "the storage holds a database of family '{}', but --db says '{}'",
            found.family, setup.kind.family
        ));
    }
    if record.storage != setup.storage {
        return mismatch(format!(
            "the storage directory is '{}', but --storage says '{}'",
            record.storage, setup.storage
        ));
    }
    if setup.hash_is_chosen && found.hash != setup.kind.hash {
        return mismatch(format!(
            "the storage holds a database with hash '{}', but --hash says '{}'",
            found.hash, setup.kind.hash
        ));
    }
    Ok(())
}

/// Opens the ledger, or makes an empty one.
async fn open_ledger<E: Runtime>(
    context: &E,
    setup: &Setup,
    record: &Record,
    is_new: bool,
) -> Result<(Ledger<E>, Idempotency), Error> {
    let mut idempotency = Idempotency::default();
    if is_new {
        // What an interrupted first start left behind has signed nothing that anybody saw.
        database::Generations::remove(context, setup.kind.family, GENERATION).await?;
        return Ok((create_ledger(context, setup, record).await?, idempotency));
    }
    let id = record.identity().id;
    let opened = Ledger::open(context, place(setup.storage), false, |commit| {
        idempotency.remember(commit);
    })
    .await?;
    let ledger = opened.ok_or_else(|| {
        Error::Mismatch(
            "the commit log is missing: restore the directory from a backup, or run 'syncctl new-epoch' to go on with the database as it is".into(),
        )
    })?;
    let head = ledger.head();
    if head.checkpoint.database != id {
        return Err(Error::Mismatch(format!(
            "the commit log is of database {}, the storage record of {id}",
            head.checkpoint.database
        )));
    }
    Ok((ledger, idempotency))
}

/// The key must be the one that signs now.
fn check_publisher(
    head: &SignedCheckpoint,
    rotations: &Rotations,
    key: &PublicKey,
) -> Result<(), Error> {
    let rotated = rotations.0.last().map(|rotation| &rotation.successor);
    if rotated.is_some_and(|successor| *successor != head.publisher) {
        let text = "'syncctl rotate-key' was interrupted: run it again";
        return Err(Error::Mismatch(text.into()));
    }
    if head.publisher != *key {
        return Err(Error::Mismatch(format!(
            "the newest commit was signed by publisher key {}, but --publisher-key is {key}; a new key takes over by 'syncctl rotate-key'",
            head.publisher
        )));
    }
    Ok(())
}

/// A ledger that begins with the empty database's state, signed as sequence 0.
async fn create_ledger<E: Runtime>(
    context: &E,
    setup: &Setup,
    record: &Record,
) -> Result<Ledger<E>, Error> {
    let kind = Kind { family: record.parameters.family, hash: record.parameters.hash };
    let database =
        database::open(context.child("database"), kind, place(setup.storage), OpenAt::Latest)
            .await?;
    let state = database.state()?;
    let now_ms = unix_ms(context.current());
    let checkpoint = Checkpoint {
        database: record.identity().id,
        family: kind.family,
        hash: kind.hash,
        sequence: 0,
        floor: state.floor,
        size: state.size,
        root: state.root,
        operations_root: state.operations_root,
        committed_at_ms: now_ms,
        signed_at_ms: now_ms,
    };
    let base = checkpoint.sign(&setup.publisher);
    Ok(Ledger::create(context, place(setup.storage), database, base).await?)
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
