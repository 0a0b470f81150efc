//! The client's process: configuration → ports → storage → work → drain.

use super::{
    adopt,
    backend::ClientBackend,
    core::{self, Ended, Error, Setup},
    state::ReplicaState,
    sync_loop::{Config as LoopConfig, Pace},
};
use crate::{
    checkpoint::{Policy, Rotations},
    config::{
        client::{Args, Config, Follow, OnEquivocation},
        default_storage_dir, parse_or_exit,
    },
    control::Report,
    daemon::{self, Edge, Failure, Ground},
    database::types::DatabaseId,
    directory::{self, Role},
    exit, keys,
    lifecycle::Ready,
    link::{self, Connector},
    replicate::state_sync,
    runtime::{Runtime as _, StorageGuard},
    tasks::Task,
    telemetry::{Telemetry, logs::Level, traces::SpanCounts},
};
use commonware_cryptography::ed25519::{PrivateKey, PublicKey};
use commonware_runtime::{Supervisor as _, tokio::Context};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

/// How often the files of a local server are looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How often it is said that they are waited for.
const SAY_INTERVAL: Duration = Duration::from_secs(10);

/// Runs `syncd-client` with a command line, the program's name first.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    daemon::run_main("syncd-client", || try_main(arguments))
}

fn try_main(arguments: Vec<OsString>) -> Result<(), Failure> {
    let config = parse_or_exit::<Args>(arguments).validate()?;
    let telemetry = daemon::start_telemetry("syncd-client", &config.common)?;
    let result = start(config, &telemetry);
    // Whatever happened, the spans that tell of it are exported.
    telemetry.flush();
    result
}

/// Pins the storage of a stopped client to `database` and removes the replica of the one before;
/// evidence and keys stay. Gives the identity that was pinned before. Safe to run again.
pub fn adopt_database(storage_dir: &Path, database: DatabaseId) -> Result<DatabaseId, Failure> {
    daemon::with_storage(storage_dir, Role::Client, |context| async move {
        adopt::adopt(&context, database).await.map_err(failure)
    })
}

/// Takes keys, ports and the directory, and runs.
fn start(mut config: Config, telemetry: &Telemetry) -> Result<(), Failure> {
    let (level, spans) = (telemetry.level.clone(), telemetry.spans.clone());
    // It dials, and accepts no replica.
    let wanted = daemon::shares(link::ADDRESSES_MAX, 0);
    let ground =
        daemon::take_ground(&config.storage_dir, config.api, config.metrics, wanted, Role::Client)?;
    config.history.log.segments = ground.descriptors.log_segments;
    let identity = match &config.identity_key {
        Some(path) => keys::load_private(path)?,
        None => load_identity(&config.storage_dir.join("identity.key"), &config.storage_dir)?,
    };
    daemon::write_public(&config.storage_dir, "identity.pub", &keys::public_hex(&identity))?;
    tracing::info!(version = crate::VERSION, config = ?config, "starting");
    let storage_dir = config.storage_dir.clone();
    daemon::run_on_runtime(&storage_dir, move |context| {
        run(context, config, ground, level, spans, identity)
    })
}

/// The key in the storage directory; made, unless a replica is there already.
fn load_identity(path: &Path, storage_dir: &Path) -> Result<PrivateKey, Failure> {
    if !path.exists() && directory::has_data(storage_dir) {
        let consequence = "the server's --authorized-clients then needs its public half";
        return Err(daemon::missing_key(path, consequence));
    }
    Ok(keys::load_or_create_private(path)?)
}

/// What the client trusts.
struct Trust {
    server: PublicKey,
    policy: Policy,
}

/// The keys of the configuration; what is missing is what a server with default settings on this
/// machine wrote.
fn load_trust(config: &Config) -> Result<Trust, Failure> {
    let local = |name: &str| local_file(name).map(|path| path.display().to_string());
    let server = config.server_key.clone().map_or_else(|| local("identity.pub"), Ok)?;
    let database = config.database.clone().map_or_else(|| local("database.id"), Ok)?;
    let mut publishers = config.trusted_keys.clone();
    if publishers.is_empty() {
        publishers.push(local("publisher.pub")?);
    }
    let publishers: Result<Vec<_>, _> =
        publishers.iter().map(|key| keys::parse_public(key)).collect();
    Ok(Trust {
        server: keys::parse_public(&server)?,
        policy: Policy {
            publishers: publishers?,
            database: keys::parse_database(&database)?,
            family: config.family,
            rotations: Rotations::default(),
        },
    })
}

/// Where a server with default settings writes a public file. Only asked for where a flag is not given: a container
/// may have no home.
fn local_file(name: &str) -> Result<PathBuf, Failure> {
    Ok(daemon::public_dir(&default_storage_dir("server")?).join(name))
}

/// The files that are still missing, where the keys of a local server are the default.
fn missing_files(config: &Config) -> Result<Vec<PathBuf>, Failure> {
    let wanted = [
        ("identity.pub", config.server_key.is_none()),
        ("publisher.pub", config.trusted_keys.is_empty()),
        ("database.id", config.database.is_none()),
    ];
    let wanted = wanted.iter().filter(|(_, wanted)| *wanted);
    let files: Result<Vec<_>, _> = wanted.map(|(name, _)| local_file(name)).collect();
    Ok(files?.into_iter().filter(|path| !path.exists()).collect())
}

/// Waits until a local server has written its keys.
async fn wait_for_trust(config: &Config) -> Result<Trust, Failure> {
    let mut said: Option<Instant> = None;
    loop {
        let missing = missing_files(config)?;
        if missing.is_empty() {
            return load_trust(config);
        }
        if said.is_none_or(|said| said.elapsed() > SAY_INTERVAL) {
            said = Some(Instant::now());
            tracing::info!(
                file = %missing[0].display(),
                "waiting for the keys of a server on this machine (start syncd-server, or give --server-key, --trusted-key and --database)"
            );
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn setup(config: &Config, trust: Trust, identity: PrivateKey, guard: StorageGuard) -> Setup {
    let room = directory::room(&directory::data_dir(&config.storage_dir));
    Setup {
        connector: Connector {
            host: config.host.clone(),
            port: config.port,
            server: trust.server,
            identity,
            skew: config.skew,
        },
        policy: trust.policy,
        sync: LoopConfig {
            pace: Pace {
                push: config.follow == Follow::Push,
                sync_interval: config.sync_interval,
                target_update_interval: config.target_update_interval,
            },
            state_sync: state_sync::Config {
                batch: config.batch,
                outstanding: config.outstanding,
                mode: config.mode,
            },
            age_max: config.max_age,
            skew: config.skew,
            history: config.history,
        },
        directory: config.storage_dir.clone(),
        guard,
        room,
    }
}

async fn run(
    context: Context,
    config: Config,
    ground: Ground,
    level: Level,
    spans: SpanCounts,
    identity: PrivateKey,
) -> Result<(), Failure> {
    let grace = config.common.shutdown_grace;
    let (mut edge, guard) = Edge::open(&context, ground, spans, None, grace)?;
    let trust = tokio::select! {
        trust = wait_for_trust(&config) => trust?,
        () = edge.shutdown.wait() => return Ok(()),
    };
    let setup = setup(&config, trust, identity, guard);
    let started = core::start(context.child("client"), &context.child("syncd"), setup).await;
    let mut core = started.map_err(failure)?;
    let tokens = daemon::load_tokens(None, config.read_token.as_ref())?;
    let backend = Arc::new(ClientBackend::new(context.child("api"), core.replica.clone()));
    let ready = readiness(&context, &core.replica, &config);
    edge.serve(backend, tokens.clone(), config.api.ip(), ready, &config.storage_dir)?;
    tracing::info!(
        size = core.replica.head().map_or(0, |head| head.checkpoint.size),
        server = core.replica.server,
        api = %edge.endpoints.api,
        metrics = %edge.endpoints.metrics,
        "serving"
    );
    let reload = || {
        let mut report = Report::default();
        daemon::reload_tokens(&tokens, None, config.read_token.as_ref(), &mut report);
        daemon::reload_level(&level, &config.common, &mut report);
        report
    };
    let serves_on = config.on_equivocation == OnEquivocation::Serve;
    let ended = async { explain(core.ended(serves_on).await) };
    edge.work(reload, ended).await?;
    edge.drain(async { core.drain().await.map_err(failure) }, "verified").await
}

/// Ready: a verified state, little lag, a fresh signature.
fn readiness(context: &Context, replica: &Arc<ReplicaState<Context>>, config: &Config) -> Ready {
    let (clock, replica) = (context.child("ready"), replica.clone());
    let (lag_max, age_max) = (config.ready_max_lag, config.max_age);
    Arc::new(move || {
        let now = clock.moment();
        if replica.head().is_none() {
            return Err("no state has been verified yet".into());
        }
        let lag = replica.lag_seconds(now);
        if lag > lag_max.as_secs_f64() {
            return Err(format!("lag of {lag:.1} s is above --ready-max-lag"));
        }
        replica.staleness(age_max, now).map_or(Ok(()), Err)
    })
}

/// Which task ended, and what the process says of it.
fn explain(ended: Ended) -> (Task, Failure) {
    match ended {
        Ended::Fatal(fatal) => (Task::Loop, Failure::new(exit::DATA, fatal.to_string())),
        Ended::Storage(error) => (Task::Upkeep, failure(error)),
        Ended::Unexpected(text) => (Task::Loop, Failure::new(exit::INTERNAL, text)),
    }
}

fn failure(error: Error) -> Failure {
    let code = if error.is_damage() { exit::DATA } else { exit::IO };
    tracing::error!(%error, "cannot go on");
    // The flag that says what the storage does not.
    let flag = match &error {
        Error::Pinned { .. } => " (--database)",
        Error::Family { .. } => " (--db)",
        Error::Untrusted { .. } => " (--trusted-key)",
        _ => "",
    };
    Failure::new(code, format!("{error}{flag}"))
}
