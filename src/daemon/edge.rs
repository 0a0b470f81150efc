//! What of a daemon is seen from outside: its ports, its health, its signals, its end.

use super::{Failure, Ground, write_public};
use crate::{
    VERSION, admin,
    api::{self, Backend, Tokens},
    control::{self, Report},
    descriptors::Shares,
    directory::DirectoryLock,
    documents::Endpoints,
    exit, http,
    lifecycle::{Health, Ready, Shutdown},
    runtime::StorageGuard,
    supervisor::Supervisor,
    tasks::Task,
    telemetry::{process::Process, traces::SpanCounts},
    watch,
};
use axum::Router;
use commonware_runtime::{
    Metrics as _, Supervisor as _, telemetry::metrics::Registered, tokio::Context,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
};
use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;

/// A daemon's outside, from its start to its end.
pub struct Edge {
    /// Ends, and asks for reloads.
    pub shutdown: Shutdown,
    /// Where it listens.
    pub endpoints: Endpoints,
    registry: Context,
    grace: Duration,
    health: Health,
    supervisor: Supervisor,
    asked: Option<mpsc::Receiver<control::Request>>,
    connections: Arc<http::Metrics>,
    shares: Shares,
    listener: Option<TcpListener>,
    stop: watch::Sender<bool>,
    admin: Port,
    api: Option<Port>,
    _lock: DirectoryLock,
    _build: BuildInfo,
}

impl Edge {
    /// Serves metrics and health from here on. `sync` is where replicas connect, and the most connections there.
    pub fn open(
        context: &Context,
        ground: Ground,
        spans: SpanCounts,
        sync: Option<(SocketAddr, usize)>,
        grace: Duration,
    ) -> Result<(Self, StorageGuard), Failure> {
        let Ground { api, metrics, lock, guard, shutdown, control, descriptors, supervisor } =
            ground;
        let endpoints = Endpoints {
            sync: sync.map(|(address, _)| address),
            api: api.local_addr()?,
            metrics: metrics.local_addr()?,
        };
        let registry = context.child("syncd");
        let connections = Arc::new(http::Metrics::new(&registry.child("http")));
        let (health, shares) = (Health::default(), descriptors.shares);
        let sync = sync.map(|(_, connections_max)| connections_max);
        let admin =
            serve_admin(context, metrics, health.clone(), spans, connections.clone(), shares, sync);
        let edge = Self {
            shutdown,
            endpoints,
            grace,
            health,
            supervisor,
            asked: Some(control::serve(control)),
            connections,
            shares,
            listener: Some(api),
            stop: watch::Sender::new(false),
            admin,
            api: None,
            _lock: lock,
            _build: build_info(&registry),
            registry,
        };
        Ok((edge, guard))
    }

    /// Serves the API, ready when `ready` says so, and writes where it is to `storage_dir`.
    pub fn serve(
        &mut self,
        backend: Arc<dyn Backend>,
        tokens: Tokens,
        host: IpAddr,
        ready: Ready,
        storage_dir: &Path,
    ) -> Result<(), Failure> {
        let requests = api::Metrics::new(&self.registry.child("http"));
        let stopped = self.stop.subscribe();
        let router = api::router(backend.clone(), tokens, host, requests, stopped.clone());
        let listener = self.listener.take().expect("the API is served once");
        let (max, connections) = (self.shares.api, self.connections.clone());
        self.api = Some(serve_api(listener, router, max, stopped, connections));
        self.health.set_ready(ready);
        write_endpoints(storage_dir, &self.endpoints)?;
        self.supervisor.ready();
        self.supervisor.watch(self.health.clone(), move || backend.status());
        Ok(())
    }

    /// Works until the end is asked for. `ended` says which of the daemon's own tasks ended before, and why.
    pub async fn work(
        &mut self,
        reload: impl FnMut() -> Report,
        ended: impl Future<Output = (Task, Failure)>,
    ) -> Result<(), Failure> {
        let asked = self.asked.take().expect("works once");
        let api = self.api.as_mut().expect("the API is served before");
        let (task, failure) = tokio::select! {
            () = self.shutdown.wait() => return Ok(()),
            () = control::on_reload(&self.shutdown, asked, &self.supervisor, reload) => return Ok(()),
            ended = ended => ended,
            ended = ports_ended(api, &mut self.admin) => ended,
        };
        self.health.died(task);
        Err(failure)
    }

    /// Ends in order: not ready, the API's requests are answered, then `rest`; `safe` says what is safe if that takes
    /// too long.
    pub async fn drain(
        mut self,
        rest: impl Future<Output = Result<(), Failure>>,
        safe: &str,
    ) -> Result<(), Failure> {
        tracing::info!("draining");
        self.supervisor.stopping();
        self.health.drain();
        let drain = async {
            self.stop.send_replace(true);
            if let Some(api) = &mut self.api {
                let _ = api.await;
            }
            rest.await
        };
        tokio::select! {
            result = drain => result?,
            () = tokio::time::sleep(self.grace) => {
                tracing::warn!("the drain took longer than --shutdown-grace; what was {safe} is safe");
            }
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// A port that is being served.
type Port = tokio::task::JoinHandle<std::io::Result<()>>;

/// Serves the metrics port until the process ends. `sync` is the most connections of the port for replicas, where
/// there is one.
fn serve_admin(
    context: &Context,
    listener: TcpListener,
    health: Health,
    spans: SpanCounts,
    metrics: Arc<http::Metrics>,
    shares: Shares,
    sync: Option<usize>,
) -> Port {
    let registry = context.child("encode");
    let mut connections = vec![("api", shares.api), ("metrics", shares.metrics)];
    connections.extend(sync.map(|max| ("sync", max)));
    let product = context.child("syncd");
    let process = Process::new(&context.child("process"), &product, spans, &connections);
    let encode: admin::Encode = Arc::new(move || {
        process.measure();
        registry.encode()
    });
    let router = admin::router(encode, health);
    let port = http::Port {
        name: "metrics",
        connections_max: shares.metrics,
        place_max: Some(http::METRICS_PLACE_MAX),
        metrics,
    };
    tokio::spawn(http::serve(listener, router, port, std::future::pending()))
}

/// Serves the API until `stop` is set; the handle ends when what was in flight has.
fn serve_api(
    listener: TcpListener,
    router: Router,
    connections_max: usize,
    mut stop: crate::watch::Receiver<bool>,
    metrics: Arc<http::Metrics>,
) -> Port {
    let port = http::Port { name: "api", connections_max, place_max: None, metrics };
    let stopped = async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    tokio::spawn(http::serve(listener, router, port, stopped))
}

/// Waits until one of the ports is no longer served, which does not happen by itself.
async fn ports_ended(api: &mut Port, metrics: &mut Port) -> (Task, Failure) {
    let (task, ended) = tokio::select! {
        ended = api => (Task::Api, ended),
        ended = metrics => (Task::Metrics, ended),
    };
    let reason = match ended {
        Ok(Ok(())) => "it ended by itself".to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    let failure = Failure::new(exit::INTERNAL, format!("the {task} port failed: {reason}"));
    tracing::error!(error = %failure, "cannot go on");
    (task, failure)
}

/// Writes where the daemon listens to `public/endpoints.json`, for tools on this machine.
fn write_endpoints(storage_dir: &Path, endpoints: &Endpoints) -> Result<(), Failure> {
    let line = serde_json::to_string(endpoints).map_err(std::io::Error::other)?;
    write_public(storage_dir, "endpoints.json", &line)
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BuildLabel {
    version: &'static str,
    commit: &'static str,
    commonware: &'static str,
}

/// `syncd_build_info`; exposed as long as it is held.
struct BuildInfo(
    #[allow(dead_code, reason = "held to stay registered")] Registered<Family<BuildLabel, Gauge>>,
);

/// Registers `syncd_build_info`.
fn build_info(registry: &Context) -> BuildInfo {
    let family = Family::<BuildLabel, Gauge>::default();
    let label = BuildLabel {
        version: VERSION,
        commit: option_env!("SYNCD_COMMIT").unwrap_or("unknown"),
        commonware: "2026.10.0",
    };
    family.get_or_create(&label).set(1);
    BuildInfo(registry.register("build_info", "What this program was built from", family))
}
