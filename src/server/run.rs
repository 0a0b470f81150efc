//! The server's process: configuration → ports → storage → work → drain.

use super::{
    backend::{ServerBackend, ServerWriter},
    core::{self, Core, Error, Setup},
};
use crate::watch;
use crate::{
    api::Tokens,
    config::server::{Config, from_args},
    control::Report,
    daemon::{self, Edge, Failure, Ground},
    descriptors::Shares,
    directory::{self, Role},
    documents::Endpoints,
    exit, keys,
    lifecycle::Ready,
    runtime::StorageGuard,
    serve::Authorized,
    tasks::Task,
    telemetry::{Telemetry, logs::Level, traces::SpanCounts},
};
use arc_swap::ArcSwapOption;
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use commonware_runtime::{Listener as _, Network as _, Supervisor as _, tokio::Context};
use std::{ffi::OsString, path::Path, process::ExitCode, sync::Arc};

/// Runs `syncd-server` with a command line, the program's name first.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    daemon::run_main("syncd-server", || try_main(arguments))
}

fn try_main(arguments: Vec<OsString>) -> Result<(), Failure> {
    let config = from_args(arguments)?;
    let telemetry = daemon::start_telemetry("syncd-server", &config.common)?;
    let result = start(config, &telemetry);
    // Whatever happened, the spans that tell of it are exported.
    telemetry.flush();
    result
}

/// Takes keys, ports and the directory, and runs.
fn start(mut config: Config, telemetry: &Telemetry) -> Result<(), Failure> {
    let (level, spans) = (telemetry.level.clone(), telemetry.spans.clone());
    let wanted = daemon::shares(config.limits.connections, config.limits.handshakes);
    let ground =
        daemon::take_ground(&config.storage_dir, config.api, config.metrics, wanted, Role::Server)?;
    let Shares { sessions, handshakes, .. } = ground.descriptors.shares;
    config.limits.lower(sessions, handshakes);
    config.history.log.segments = ground.descriptors.log_segments;
    let key = if directory::has_data(&config.storage_dir) { load_existing_key } else { load_key };
    let identity = key(config.identity_key.as_deref(), &config.storage_dir, "identity.key")?;
    let publisher = key(config.publisher_key.as_deref(), &config.storage_dir, "publisher.key")?;
    tracing::info!(version = crate::VERSION, config = ?config, "starting");
    let storage_dir = config.storage_dir.clone();
    daemon::run_on_runtime(&storage_dir, move |context| {
        run(context, config, ground, level, spans, identity, publisher)
    })
}

/// The key of a flag, or the one in the storage directory, made if need be.
pub(crate) fn load_key(
    flag: Option<&Path>,
    storage_dir: &Path,
    name: &str,
) -> Result<PrivateKey, Failure> {
    Ok(match flag {
        Some(path) => keys::load_private(path)?,
        None => keys::load_or_create_private(&storage_dir.join(name))?,
    })
}

/// The key of a flag, or the one in the storage directory, which holds a database: a key that is not there any more is
/// not replaced in silence.
pub(crate) fn load_existing_key(
    flag: Option<&Path>,
    storage_dir: &Path,
    name: &str,
) -> Result<PrivateKey, Failure> {
    let path = storage_dir.join(name);
    if flag.is_none() && !path.exists() {
        let consequence = match name {
            "publisher.key" => {
                "then 'syncctl new-epoch': replicas adopt what it signs by hand only"
            }
            _ => "replicas then need its public half as --server-key",
        };
        return Err(daemon::missing_key(&path, consequence));
    }
    load_key(flag, storage_dir, name)
}

fn load_authorized(config: &Config) -> Result<Authorized, Failure> {
    let keys = config.authorized_clients.as_deref().map(keys::load_authorized).transpose()?;
    if keys.is_none() {
        tracing::warn!("any replica may connect: there is no --authorized-clients");
    }
    Ok(Arc::new(watch::Sender::new(keys)))
}

fn setup(
    config: &Config,
    identity: PrivateKey,
    publisher: PrivateKey,
    authorized: Authorized,
    guard: StorageGuard,
) -> Setup {
    Setup {
        identity,
        publisher,
        kind: config.kind,
        mode: config.mode,
        storage: config.storage,
        hash_is_chosen: config.hash_is_chosen,
        initial_operations: config.initial_ops,
        generator: config.generator,
        history: config.history,
        heartbeat_interval: config.heartbeat_interval,
        queue_requests_max: config.queue_requests_max,
        authorized,
        limits: config.limits,
        guard,
    }
}

async fn run(
    context: Context,
    config: Config,
    ground: Ground,
    level: Level,
    spans: SpanCounts,
    identity: PrivateKey,
    publisher: PrivateKey,
) -> Result<(), Failure> {
    let listener = context.bind(config.listen).await.map_err(|_| {
        let text = format!(
            "cannot listen on {} (--port): the port is in use or not allowed",
            config.listen
        );
        Failure::new(exit::IO, text)
    })?;
    let sync_address = listener.local_addr().map_err(|e| Failure::new(exit::IO, e.to_string()))?;
    let shares = ground.descriptors.shares;
    let sync = Some((sync_address, shares.sessions + shares.handshakes));
    let grace = config.common.shutdown_grace;
    let (mut edge, guard) = Edge::open(&context, ground, spans, sync, grace)?;
    let authorized = load_authorized(&config)?;
    let tokens = daemon::load_tokens(config.api_token.as_ref(), config.read_token.as_ref())?;
    let public = (identity.public_key(), publisher.public_key());
    let setup = setup(&config, identity, publisher, authorized.clone(), guard);
    let registry = context.child("syncd");
    let starting = core::start(context.child("server"), &registry, setup, listener);
    tokio::pin!(starting);
    let mut core = tokio::select! {
        core = &mut starting => core.map_err(failure)?,
        () = edge.shutdown.wait() => {
            // What is executed again or made is not broken off half way, unless that takes too long.
            let started = tokio::time::timeout(grace, starting).await;
            return match started {
                Ok(core) => core.map_err(failure)?.drain().await.map_err(failure),
                Err(_) => Ok(()),
            };
        }
    };
    let directory = daemon::public_dir(&config.storage_dir);
    for (name, line) in [
        ("identity.pub", hex::encode(&public.0)),
        ("publisher.pub", hex::encode(&public.1)),
        ("database.id", core.identity.id.to_string()),
    ] {
        keys::write_public_file(&directory, name, &line)?;
    }
    let writer = Arc::new(ServerWriter {
        publisher: ArcSwapOption::from_pointee(core.publisher.clone()),
        value_length_max: config.value_length_max,
    });
    let backend = Arc::new(ServerBackend {
        context: context.child("api"),
        ledger: core.ledger.clone(),
        rotations: core.rotations.clone(),
        writer: writer.clone(),
    });
    let ready: Ready = Arc::new(|| Ok(()));
    edge.serve(backend, tokens.clone(), config.api.ip(), ready, &config.storage_dir)?;
    announce(&core, &edge.endpoints);
    let reload = || reload(&config, &authorized, &tokens, &level);
    edge.work(reload, supervise(&mut core)).await?;
    let rest = async {
        writer.publisher.store(None);
        core.drain().await.map_err(failure)
    };
    edge.drain(rest, "acknowledged").await
}

fn announce(core: &Core<Context>, endpoints: &Endpoints) {
    let head = core.ledger.head().checkpoint;
    tracing::info!(
        database = %core.identity.id,
        family = %head.family,
        hash = %head.hash,
        size = head.size,
        root = %head.root,
        sync = endpoints.sync.map(tracing::field::display),
        api = %endpoints.api,
        metrics = %endpoints.metrics,
        "serving"
    );
}

/// Waits for the end of a task that should not end.
async fn supervise(core: &mut Core<Context>) -> (Task, Failure) {
    tokio::select! {
        claim = core.amnesia.recv() => (Task::Listener, match claim {
            Some(claim) => {
                let checkpoint = claim.checkpoint;
                let error =
                    Error::Amnesia { sequence: checkpoint.sequence, root: checkpoint.root };
                tracing::error!(%error, "writing stops");
                failure(error)
            }
            None => Failure::new(exit::INTERNAL, "the listener ended"),
        }),
        result = &mut core.publishing => (Task::Publisher, match result {
            Ok(Ok(())) => Failure::new(exit::INTERNAL, "the publisher ended by itself"),
            Ok(Err(error)) => {
                tracing::error!(%error, "the publisher failed");
                failure(error.into())
            }
            Err(error) => Failure::new(exit::INTERNAL, format!("the publisher ended: {error}")),
        }),
    }
}

pub(super) fn failure(error: Error) -> Failure {
    let code = if error.is_damage() { exit::DATA } else { exit::IO };
    Failure::new(code, error.to_string())
}

/// SIGHUP: authorised clients, tokens and the level of the log.
fn reload(config: &Config, authorized: &Authorized, tokens: &Tokens, level: &Level) -> Report {
    let mut report = Report::default();
    if let Some(path) = &config.authorized_clients {
        match keys::load_authorized(path) {
            Ok(keys) => {
                tracing::info!(keys = keys.len(), "authorised clients reloaded");
                report.reloaded.push(format!("{} authorised clients", keys.len()));
                authorized.send_replace(Some(keys));
            }
            Err(error) => {
                tracing::error!(%error, "the old list of clients stays in force");
                report.failed.push(error.to_string());
            }
        }
    }
    let (write, read) = (config.api_token.as_ref(), config.read_token.as_ref());
    daemon::reload_tokens(tokens, write, read, &mut report);
    daemon::reload_level(level, &config.common, &mut report);
    report
}
