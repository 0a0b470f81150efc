//! Accepts connections, proves keys, starts sessions.

use super::{Config, Metrics, Shared, limits, session};
use crate::{
    ledger::Ledger,
    link::{SERVER_SKEW, spawn_frames, upgrader},
    runtime::Runtime,
    wire::{FRAME_BYTES_MAX, NAMESPACE},
};
use commonware_cryptography::ed25519::PublicKey;
use commonware_runtime::{Listener as _, SinkOf, StreamOf};
use commonware_stream::Upgrader as _;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Pause after a failed accept (out of file descriptors, usually).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener at work.
pub struct Handle {
    drain: watch::Sender<bool>,
    connections: Arc<Semaphore>,
    connections_max: usize,
    task: commonware_runtime::Handle<()>,
}

impl Handle {
    /// Stops accepting, tells sessions to finish what is in flight, and waits until they have.
    pub async fn drain(&self) {
        self.drain.send_replace(true);
        let all = u32::try_from(self.connections_max).unwrap_or(u32::MAX);
        let _ = self.connections.acquire_many(all).await;
        self.task.abort();
    }
}

/// Serves `ledger` on `listener`.
pub fn spawn<E: Runtime>(
    context: E,
    config: Config,
    ledger: Arc<Ledger<E>>,
    metrics: Metrics,
    listener: <E as commonware_runtime::Network>::Listener,
) -> Handle {
    let (drain, draining) = watch::channel(false);
    // The semaphore counts in 29 bits; so many connections no process can have.
    let connections_max = config.connections_max.min(1 << 20);
    let connections = Arc::new(Semaphore::new(connections_max));
    let shared = Arc::new(Shared {
        quotas: limits::Quotas::new(config.requests_per_second, config.bytes_per_second),
        serving: Semaphore::new(limits::RESPONSES_AT_ONCE_MAX),
        config,
        ledger,
        metrics,
        draining,
    });
    let free = connections.clone();
    let task =
        context.child("listener").spawn(move |context| accept(context, shared, listener, free));
    Handle { drain, connections, connections_max, task }
}

async fn accept<E: Runtime>(
    context: E,
    shared: Arc<Shared<E>>,
    mut listener: <E as commonware_runtime::Network>::Listener,
    connections: Arc<Semaphore>,
) {
    let mut draining = shared.draining.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = draining.wait_for(|draining| *draining) => return,
        };
        let (address, sink, stream) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                context.sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(permit) = admit(&shared, &connections, address) else { continue };
        let shared = shared.clone();
        context.child("session").spawn(move |context| async move {
            serve_connection(context, shared, address, sink, stream, permit).await;
        });
    }
}

/// Whether there is room for one more connection from `address`.
fn admit<E: Runtime>(
    shared: &Shared<E>,
    connections: &Arc<Semaphore>,
    address: SocketAddr,
) -> Option<OwnedSemaphorePermit> {
    if !shared.quotas.admit_handshake(address.ip()) {
        shared.metrics.reject("handshake_rate");
        return None;
    }
    let permit = connections.clone().try_acquire_owned().ok();
    if permit.is_none() {
        shared.metrics.reject("connections");
        tracing::debug!(%address, "too many connections");
    }
    permit
}

async fn serve_connection<E: Runtime>(
    context: E,
    shared: Arc<Shared<E>>,
    address: SocketAddr,
    sink: SinkOf<E>,
    stream: StreamOf<E>,
    _permit: OwnedSemaphorePermit,
) {
    let authorized = shared.config.authorized.load_full();
    // Only a claim: proved when the handshake ends.
    let bouncer = |key: PublicKey| {
        let welcome = authorized.as_ref().as_ref().is_none_or(|keys| keys.contains(&key));
        async move { welcome }
    };
    let upgraded = upgrader(shared.config.identity.clone(), SERVER_SKEW)
        .listen(context.child("handshake"), NAMESPACE, FRAME_BYTES_MAX, bouncer, stream, sink)
        .await;
    let (key, sender, receiver) = match upgraded {
        Ok(upgraded) => upgraded,
        Err(error) => {
            let text = error.to_string();
            let unauthorized = text.contains("peer rejected");
            shared.metrics.reject(if unauthorized { "unauthorized" } else { "handshake" });
            tracing::info!(%address, error = text, "handshake refused");
            return;
        }
    };
    let frames = spawn_frames(&context, sender, receiver);
    shared.metrics.sessions.inc();
    session::run(context, &shared, key, address, frames).await;
    shared.metrics.sessions.dec();
}
