//! Accepts connections, proves keys, starts sessions.

use super::{Config, Metrics, Shared, budget::Budget, limits, session};
use crate::watch;
use crate::{
    ledger::Ledger,
    link::{Bounded, SERVER_SKEW, spawn_frames, upgrader},
    runtime::Runtime,
    wire::{CLIENT_MESSAGE_BYTES_MAX, Code, FRAME_BYTES_MAX, NAMESPACE, Refused},
};
use commonware_cryptography::ed25519::PublicKey;
use commonware_runtime::{Listener as _, SinkOf, StreamOf};
use commonware_stream::{Upgrader as _, sake, utils::TimeoutError};
use commonware_utils::sync::Mutex;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Semaphore;

/// Pause after a failed accept (out of file descriptors, usually).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener at work.
pub struct Handle {
    drain: watch::Sender<bool>,
    sessions: Arc<Semaphore>,
    sessions_max: usize,
    tasks: [commonware_runtime::Handle<()>; 2],
}

impl Handle {
    /// Stops accepting, tells sessions to finish what is in flight, and waits until they have.
    pub async fn drain(&self) {
        self.drain.send_replace(true);
        let all = u32::try_from(self.sessions_max).unwrap_or(u32::MAX);
        let _ = self.sessions.acquire_many(all).await;
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Counts what is going on for each [group of addresses](limits::address_group).
type PerAddress = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// One of the things that are counted for an address, while it lasts.
struct Counted {
    counts: PerAddress,
    group: IpAddr,
}

impl Counted {
    /// Counts one more, unless there are `max` already.
    fn new(counts: &PerAddress, group: IpAddr, max: usize) -> Option<Self> {
        let mut table = counts.lock();
        let count = table.entry(group).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Self { counts: counts.clone(), group })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut table = self.counts.lock();
        if let Some(count) = table.get_mut(&self.group) {
            *count -= 1;
            if *count == 0 {
                table.remove(&self.group);
            }
        }
    }
}

/// Places for what strangers may have going on. Handshakes have their own, so that connections
/// which prove nothing cannot keep out those that do.
struct Places {
    /// Sockets of both kinds: connections that find none wait in the kernel.
    sockets: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    handshakes_of: PerAddress,
    sessions: Arc<Semaphore>,
    sessions_of: PerAddress,
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
    let sessions_max = config.limits.connections.min(1 << 20);
    let sessions = Arc::new(Semaphore::new(sessions_max));
    let handshakes_max = config.limits.handshakes;
    let shared = Arc::new(Shared {
        quotas: limits::Quotas::new(&config.limits),
        budget: Arc::new(Budget::default()),
        serving: Semaphore::new(limits::RESPONSES_AT_ONCE_MAX),
        config,
        ledger,
        metrics,
        draining,
    });
    let places = Arc::new(Places {
        sockets: Arc::new(Semaphore::new(sessions_max + handshakes_max)),
        handshakes: Arc::new(Semaphore::new(handshakes_max)),
        handshakes_of: PerAddress::default(),
        sessions: sessions.clone(),
        sessions_of: PerAddress::default(),
    });
    let watched = shared.clone();
    let watching = context.child("budget").spawn(move |context| async move {
        let report = |used: usize| {
            watched.metrics.unread_bytes.set(i64::try_from(used).unwrap_or(i64::MAX));
        };
        watched.budget.clone().watch(context, report).await;
    });
    let accepting =
        context.child("listener").spawn(move |context| accept(context, shared, listener, places));
    Handle { drain, sessions, sessions_max, tasks: [accepting, watching] }
}

async fn accept<E: Runtime>(
    context: E,
    shared: Arc<Shared<E>>,
    mut listener: <E as commonware_runtime::Network>::Listener,
    places: Arc<Places>,
) {
    let mut draining = shared.draining.clone();
    loop {
        // A socket is counted before it is accepted: descriptors are shared with the storage.
        let next = async {
            let socket = places.sockets.clone().acquire_owned().await;
            (socket, listener.accept().await)
        };
        let (socket, accepted) = tokio::select! {
            biased;
            _ = draining.wait_for(|draining| *draining) => return,
            next = next => next,
        };
        let (address, sink, stream) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                context.sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(handshake) = admit(&shared, &places, address) else { continue };
        let (shared, places) = (shared.clone(), places.clone());
        context.child("session").spawn(move |context| async move {
            serve_connection(context, shared, places, address, sink, stream, handshake).await;
            drop(socket);
        });
    }
}

/// A handshake that is going on.
struct Handshake {
    _of_all: tokio::sync::OwnedSemaphorePermit,
    _of_address: Counted,
}

/// Whether `address` may begin a handshake now. Nothing can be said to one that may not: there is
/// no channel to say it over.
fn admit<E: Runtime>(
    shared: &Shared<E>,
    places: &Places,
    address: SocketAddr,
) -> Option<Handshake> {
    let group = limits::address_group(address.ip());
    if !shared.quotas.admit_handshake(group) {
        shared.metrics.reject("handshake_rate");
        return None;
    }
    let of_address =
        Counted::new(&places.handshakes_of, group, shared.config.limits.handshakes_per_address);
    let of_all = places.handshakes.clone().try_acquire_owned().ok();
    match (of_all, of_address) {
        (Some(of_all), Some(of_address)) => {
            Some(Handshake { _of_all: of_all, _of_address: of_address })
        }
        _ => {
            shared.metrics.reject("handshakes");
            None
        }
    }
}

/// Where a session counts while it lasts.
struct Place {
    _of_all: tokio::sync::OwnedSemaphorePermit,
    _of_address: Counted,
}

/// A place for a session from `address`, or why there is none.
fn place<E: Runtime>(
    shared: &Shared<E>,
    places: &Places,
    address: SocketAddr,
) -> Result<Place, Refused> {
    let limits = &shared.config.limits;
    let busy = |text: String| Refused::later(Code::Busy, text, limits::RETRY_AFTER);
    let group = limits::address_group(address.ip());
    let max = limits.connections_per_address;
    let of_address = Counted::new(&places.sessions_of, group, max)
        .ok_or_else(|| busy(format!("this address has {max} connections already")))?;
    let of_all =
        places.sessions.clone().try_acquire_owned().map_err(|_| {
            busy(format!("this server has {} connections already", limits.connections))
        })?;
    Ok(Place { _of_all: of_all, _of_address: of_address })
}

async fn serve_connection<E: Runtime>(
    context: E,
    shared: Arc<Shared<E>>,
    places: Arc<Places>,
    address: SocketAddr,
    sink: SinkOf<E>,
    stream: StreamOf<E>,
    handshake: Handshake,
) {
    let here = shared.clone();
    // Only a claim: proved when the handshake ends.
    let bouncer = |key: PublicKey| async move { here.authorizes(&key) };
    let stream = Bounded::new(stream, CLIENT_MESSAGE_BYTES_MAX);
    let upgraded = upgrader(shared.config.identity.clone(), SERVER_SKEW)
        .listen(context.child("handshake"), NAMESPACE, FRAME_BYTES_MAX, bouncer, stream, sink)
        .await;
    drop(handshake);
    let (key, sender, receiver) = match upgraded {
        Ok(upgraded) => upgraded,
        Err(error) => {
            let is_unauthorized =
                matches!(error, TimeoutError::Upgrade(sake::Error::PeerRejected(_)));
            shared.metrics.reject(if is_unauthorized { "unauthorized" } else { "handshake" });
            tracing::info!(%address, %error, "handshake refused");
            return;
        }
    };
    let frames = spawn_frames(&context, sender, receiver);
    let place = match place(&shared, &places, address) {
        Ok(place) => place,
        Err(refused) => {
            shared.metrics.reject("connections");
            tracing::debug!(%address, client = %key, reason = %refused, "too many connections");
            session::refuse(&context, frames, refused).await;
            return;
        }
    };
    shared.metrics.sessions.inc();
    session::run(context, &shared, key, address, frames).await;
    shared.metrics.sessions.dec();
    drop(place);
}
