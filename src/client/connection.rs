//! Keeps a connection to the server: connects for ever, with growing, jittered pauses.

use super::{
    judge::Unacceptable,
    phase::{Fatal, Phase, RefusalReason, StallReason},
    state::ReplicaState,
};
use crate::watch;
use crate::{
    checkpoint::Refusal,
    database::types::DatabaseId,
    link::{Connected, Connector, Link, LinkError},
    runtime::Runtime,
    wire::{Code, Hello, Welcome},
};
use commonware_utils::sync::Mutex;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// First pause after a connection ended.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A connection that brought the replica forward, or lasted this long without misbehaviour, ends a
/// series of failures: a server that is restarted again and again is followed between its restarts.
const GOOD_AFTER: Duration = Duration::from_secs(5);

/// Pauses that double, each chosen at random from the upper half of its range, so that replicas
/// which lost their server together do not come back together.
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(PAUSE_MIN)
    }
}

impl Backoff {
    /// The next pause.
    pub fn next<E: Runtime>(&mut self, context: &mut E) -> Duration {
        let range = self.0;
        self.0 = (range * 2).min(PAUSE_MAX);
        let random = f64::from(rand_core::Rng::next_u32(context)) / f64::from(u32::MAX);
        range.mul_f64(0.5 + random / 2.0)
    }

    /// Begins again with short pauses.
    pub fn reset(&mut self) {
        self.0 = PAUSE_MIN;
    }
}

/// A greeted server.
pub struct Session<E: Runtime> {
    /// The connection.
    pub link: Arc<Link<E>>,
    /// What the server said of itself.
    pub welcome: Welcome,
    /// The watch of a state sync, until the replica has caught up from the adopted state: while it
    /// lasts, the server keeps the log from there on.
    pub held: Mutex<Option<commonware_runtime::AbortOnDrop<()>>>,
}

/// The task's state.
pub struct Connection<E: Runtime> {
    /// How to reach the server.
    pub connector: Connector,
    /// The pinned database.
    pub database: DatabaseId,
    /// What it connects for.
    pub replica: Arc<ReplicaState<E>>,
    /// Sessions, for the loop.
    pub sessions: watch::Sender<Option<Arc<Session<E>>>>,
    /// Their connections, for a running state sync.
    pub links: watch::Sender<Option<Arc<Link<E>>>>,
    /// Mismatches with no verified state to serve: the client exits 65.
    pub fatal: tokio::sync::mpsc::Sender<Fatal>,
}

impl<E: Runtime> Connection<E> {
    /// Connects for ever.
    pub async fn run(self, mut context: E) {
        let mut backoff = Backoff::default();
        loop {
            let (started, before) = (context.monotonic(), self.sequence());
            let error = self.connect_and_hold(&context).await;
            self.sessions.send_replace(None);
            self.links.send_replace(None);
            self.replica.metrics.connected.set(0);
            let lasted = context.monotonic().saturating_sub(started);
            let good = lasted > GOOD_AFTER && !matches!(error, LinkError::Protocol(_));
            if good || self.sequence() > before {
                backoff.reset();
            }
            self.note(&context, &error).await;
            let pause = backoff.next(&mut context);
            context.sleep(pause).await;
        }
    }

    /// Sequence of the state that is served.
    fn sequence(&self) -> Option<u64> {
        self.replica.head().map(|head| head.checkpoint.sequence)
    }

    /// Connects, checks the greeting, and waits for the end.
    async fn connect_and_hold(&self, context: &E) -> LinkError {
        let hello = Hello {
            newest: self.replica.known.newest(),
            rotations: self.replica.known.rotations(),
            ..Hello::new(self.replica.family, self.replica.mode, Some(self.database))
        };
        let connecting = self.connector.connect(
            context.child("connection"),
            &hello,
            self.replica.received.clone(),
        );
        let Connected { link, welcome, address } = match connecting.await {
            Ok(connected) => connected,
            Err(error) => return error,
        };
        if let Err(error) = self.greet(context, &link, &welcome).await {
            return self.refuse(error, context.monotonic()).await;
        }
        let heartbeat_ms =
            u64::try_from(welcome.heartbeat_interval.as_millis()).unwrap_or(u64::MAX);
        // What a server says here only loosens what counts as late, so it is bounded.
        self.replica.heartbeat_ms.store(heartbeat_ms.clamp(100, 60_000), Ordering::Relaxed);
        tracing::info!(
            %address,
            size = welcome.checkpoint.checkpoint.size,
            root = %welcome.checkpoint.checkpoint.root,
            "connected"
        );
        self.replica.metrics.connected.set(1);
        self.replica.set_error(None);
        self.links.send_replace(Some(link.clone()));
        self.sessions.send_replace(Some(Arc::new(Session {
            link: link.clone(),
            welcome,
            held: Mutex::default(),
        })));
        link.closed().await
    }

    /// Checks what the server says of the publisher.
    async fn greet(
        &self,
        context: &E,
        link: &Link<E>,
        welcome: &Welcome,
    ) -> Result<(), Unacceptable> {
        self.replica.known.learn(&welcome.rotations).await?;
        self.replica.judge(&welcome.checkpoint, link, context.moment()).await?;
        Ok(())
    }

    /// A greeting that is not acceptable.
    async fn refuse(&self, error: Unacceptable, now: Duration) -> LinkError {
        let text = error.to_string();
        let refusal = match error {
            Unacceptable::Refused(refusal) => refusal,
            Unacceptable::NotProved(_) => {
                tracing::error!(reason = %text, "the server is refused");
                self.replica.set_phase(Phase::Refusing(RefusalReason::Rejected), now);
                self.replica.set_error(Some(text));
                return LinkError::Protocol("the server does not prove its history");
            }
            Unacceptable::Storage(_) => {
                tracing::error!(error = %text, "the replica cannot go on");
                self.replica.set_phase(Phase::Stalled(StallReason::Storage), now);
                self.replica.set_error(Some(text));
                return LinkError::Closed;
            }
            Unacceptable::Link(error) => return error,
        };
        tracing::error!(reason = %text, "the server is refused");
        self.replica.set_phase(Phase::Refusing((&refusal).into()), now);
        self.replica.set_error(Some(text.clone()));
        if refusal.is_mismatch() && self.replica.head().is_none() {
            let _ = self.fatal.send(Fatal::Mismatch(text)).await;
        }
        if matches!(refusal, Refusal::Equivocation(_)) {
            let _ = self.fatal.try_send(Fatal::Equivocation(refusal));
        }
        LinkError::Protocol("the server's checkpoint is not acceptable")
    }

    /// Counts and logs the end of a connection, or the failure to make one.
    async fn note(&self, context: &E, error: &LinkError) {
        let replica = &self.replica;
        replica
            .metrics
            .reconnects
            .get_or_create(&super::metrics::ReasonLabel { reason: error.reason() })
            .inc();
        let now = context.monotonic();
        if let LinkError::Refused(refused) = error.telling()
            && (refused.code == Code::Mismatch || refused.code == Code::UnsupportedVersion)
        {
            replica.set_phase(Phase::Refusing(RefusalReason::Mismatch), now);
            if replica.head().is_none() {
                let _ = self.fatal.send(Fatal::Mismatch(refused.to_string())).await;
            }
        }
        if let LinkError::Protocol(what) = error.telling() {
            replica.metrics.reject("protocol");
            tracing::warn!(reason = what, "connection dropped");
        } else {
            tracing::info!(reason = %error, "not connected");
        }
        // Hung up on, to greet it again, a server that is behind is still what the replica waits for.
        let is_behind = replica.phase() == Phase::Stalled(StallReason::ServerBehind)
            && matches!(error.telling(), LinkError::Closed);
        if !is_behind
            && !matches!(replica.phase(), Phase::Refusing(_) | Phase::Stalled(StallReason::Storage))
        {
            replica.set_phase(Phase::Connecting, now);
            replica.set_error(Some(error.to_string()));
        }
    }
}
