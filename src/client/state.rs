//! What all parts of a client share: the state served, what is known, and how things stand.

use super::{disk::Disk, known::Known, metrics::Metrics, phase::Phase};
use crate::watch;
use crate::{
    checkpoint::SignedCheckpoint,
    commit_log::CommitLog,
    database::types::{Family, Mode},
    documents::{ClientStatus, Role, Status},
    ledger::Ledger,
    reads::View,
    replicate::Progress,
    runtime::{Moment, Runtime},
};
use arc_swap::ArcSwapOption;
use commonware_utils::sync::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// How things stand.
struct Standing {
    phase: Phase,
    last_error: Option<String>,
    phase_since: Duration,
    rate: f64,
}

/// Shared by the loop, the API and the metrics.
pub struct ReplicaState<E: Runtime> {
    /// The state served; swapped as a whole when a generation is adopted.
    pub ledger: ArcSwapOption<Ledger<E>>,
    /// The log of a replica whose database cannot be opened, until another one is built: what it
    /// verified once is still compared with what servers show.
    pub history: ArcSwapOption<CommitLog<E>>,
    /// The newest checkpoint known.
    pub known: Known<E>,
    /// The disk below.
    pub disk: Disk,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Progress of the running state sync.
    pub progress: Arc<Progress>,
    /// Bytes received.
    pub received: Arc<AtomicU64>,
    /// Size of the state served, for those who wait for it.
    pub size: watch::Sender<u64>,
    /// Family.
    pub family: Family,
    /// How much is kept.
    pub mode: Mode,
    /// The server, as configured.
    pub server: String,
    /// Iterations since the start.
    pub iterations: AtomicU64,
    /// Clock difference tolerated before a heartbeat counts as missing.
    pub skew: Duration,
    /// How often the server signs again; what it said last.
    pub heartbeat_ms: AtomicU64,
    started: Duration,
    standing: Mutex<Standing>,
}

impl<E: Runtime> ReplicaState<E> {
    /// A replica that begins with `ledger`.
    #[allow(clippy::too_many_arguments, reason = "called once, by the start of the client")]
    pub fn new(
        ledger: Option<Arc<Ledger<E>>>,
        history: Option<CommitLog<E>>,
        known: Known<E>,
        disk: Disk,
        metrics: Arc<Metrics>,
        family: Family,
        mode: Mode,
        server: String,
        skew: Duration,
        now: Duration,
    ) -> Self {
        let size = ledger.as_ref().map_or(0, |ledger| ledger.head().checkpoint.size);
        Self {
            ledger: ArcSwapOption::new(ledger),
            history: ArcSwapOption::from_pointee(history),
            known,
            disk,
            metrics,
            progress: Arc::default(),
            received: Arc::default(),
            size: watch::Sender::new(size),
            family,
            mode,
            server,
            iterations: AtomicU64::new(0),
            skew,
            heartbeat_ms: AtomicU64::new(5000),
            started: now,
            standing: Mutex::new(Standing {
                phase: Phase::Connecting,
                last_error: None,
                phase_since: now,
                rate: 0.0,
            }),
        }
    }

    /// The signed state that is served.
    pub fn head(&self) -> Option<SignedCheckpoint> {
        self.ledger.load().as_ref().map(|ledger| ledger.head())
    }

    /// Says what the client is doing now.
    pub fn set_phase(&self, phase: Phase, now: Duration) {
        let mut standing = self.standing.lock();
        if standing.phase == phase {
            return;
        }
        standing.phase = phase;
        standing.phase_since = now;
        drop(standing);
        self.metrics.set_stalled(phase.stall());
        tracing::debug!(state = phase.as_str(), "state changed");
    }

    /// What the client is doing now.
    pub fn phase(&self) -> Phase {
        self.standing.lock().phase
    }

    /// Notes what went wrong; `None` once it works again.
    pub fn set_error(&self, error: Option<String>) {
        self.standing.lock().last_error = error;
    }

    /// Operations that the newest checkpoint known is ahead.
    pub fn lag_operations(&self) -> u64 {
        let known = self.known.target().map_or(0, |known| known.checkpoint.size);
        let own = self.head().map_or(0, |head| head.checkpoint.size);
        known.saturating_sub(own)
    }

    /// Seconds behind: 0 while the state equals the newest checkpoint known and a signature that
    /// says so arrived lately; else the time since then. See [`super::freshness`].
    pub fn lag_seconds(&self, now: Moment) -> f64 {
        let Some(head) = self.head() else {
            return now.monotonic.saturating_sub(self.started).as_secs_f64();
        };
        let known = self.known.target();
        let equal =
            known.as_ref().is_none_or(|known| known.checkpoint.same_state(&head.checkpoint));
        let silence = self.known.silence(now);
        if !equal {
            return head.checkpoint.age(now.wall).max(silence).as_secs_f64();
        }
        let heartbeat = Duration::from_millis(self.heartbeat_ms.load(Ordering::Relaxed));
        match self.known.signature_age(now) {
            Some(age) if self.known.is_heard() && age < heartbeat * 2 + self.skew => 0.0,
            Some(age) => age.as_secs_f64(),
            None => silence.as_secs_f64(),
        }
    }

    /// Why the newest signature is not fresh enough to be ready, if it is not.
    pub fn staleness(&self, age_max: Duration, now: Moment) -> Option<String> {
        if self.known.signature_age(now).is_some_and(|age| age <= age_max) {
            return None;
        }
        Some(match self.known.signature_ahead(now) {
            Some(ahead) => format!(
                "the newest signature lies {:.0} s in the future: the publisher's clock or this one is wrong",
                ahead.as_secs_f64()
            ),
            None => "the newest signature is older than --max-age".into(),
        })
    }

    /// The state that a read made now would see.
    pub fn view(&self, now: Moment) -> Option<View> {
        self.head().map(|head| self.view_of(&head, now))
    }

    /// The view of a state that was read.
    pub fn view_of(&self, head: &SignedCheckpoint, now: Moment) -> View {
        View {
            database: head.checkpoint.database,
            size: head.checkpoint.size,
            root: head.checkpoint.root,
            lag_seconds: self.lag_seconds(now),
        }
    }

    /// Writes how things stand into the metrics; called now and then.
    pub fn measure(&self, now: Moment) {
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let head = self.head();
        let known = self.known.target();
        let metrics = &self.metrics;
        metrics.size.set(gauge(head.as_ref().map_or(0, |head| head.checkpoint.size)));
        metrics.target_size.set(gauge(known.as_ref().map_or(0, |known| known.checkpoint.size)));
        metrics.lag_operations.set(gauge(self.lag_operations()));
        metrics.lag_seconds.set(self.lag_seconds(now));
        let ahead = self.known.signature_ahead(now).unwrap_or_default();
        metrics.signature_ahead.set(ahead.as_secs_f64());
        if let Some(head) = &head {
            metrics.last_verified.set(head.checkpoint.signed_at_ms as f64 / 1000.0);
        }
        let received = self.received.load(Ordering::Relaxed);
        metrics.received_bytes.inc_by(received.saturating_sub(metrics.received_bytes.get()));
        self.measure_state_sync(now);
    }

    fn measure_state_sync(&self, now: Moment) {
        let (held, target, eta) = self.state_sync_progress(now).unwrap_or((0, 0, 0.0));
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.state_sync_operations.set(gauge(held));
        self.metrics.state_sync_target.set(gauge(target));
        self.metrics.state_sync_eta.set(eta);
    }

    /// Operations held, operations of the target and seconds left, while a state sync runs.
    fn state_sync_progress(&self, now: Moment) -> Option<(u64, u64, f64)> {
        let mut standing = self.standing.lock();
        if standing.phase != Phase::StateSync {
            return None;
        }
        let target = self.progress.target.load(Ordering::Relaxed);
        let resumed = self.progress.resumed_at.load(Ordering::Relaxed);
        let fetched = self.progress.operations.load(Ordering::Relaxed);
        let held = if resumed == u64::MAX { 0 } else { (resumed + fetched).min(target) };
        let elapsed = now.monotonic.saturating_sub(standing.phase_since).as_secs_f64();
        standing.rate = if elapsed > 0.0 { fetched as f64 / elapsed } else { 0.0 };
        let eta = if standing.rate > 0.0 { (target - held) as f64 / standing.rate } else { 0.0 };
        Some((held, target, eta))
    }

    /// Notes the rate of a catch-up.
    pub fn set_rate(&self, operations: u64, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        if seconds > 0.0 {
            self.standing.lock().rate = operations as f64 / seconds;
        }
    }

    /// What `GET /v1/status` answers.
    pub fn status(&self, now: Moment) -> Status {
        let head = self.head();
        let known = self.known.target();
        let eta = self.state_sync_progress(now).map(|(_, _, eta)| eta);
        let standing = self.standing.lock();
        let (phase, rate, last_error) =
            (standing.phase, standing.rate, standing.last_error.clone());
        drop(standing);
        let checkpoint = head.map(|head| head.checkpoint);
        Status {
            role: Role::Client,
            version: crate::VERSION.into(),
            family: Some(self.family),
            mode: Some(self.mode),
            hash: checkpoint
                .as_ref()
                .or(known.as_ref().map(|known| &known.checkpoint))
                .map(|c| c.hash),
            database: checkpoint.as_ref().map(|c| c.database),
            size: checkpoint.as_ref().map_or(0, |c| c.size),
            floor: checkpoint.as_ref().map_or(0, |c| c.floor),
            root: checkpoint.as_ref().map(|c| c.root),
            sequence: checkpoint.as_ref().map_or(0, |c| c.sequence),
            committed_at: checkpoint.as_ref().map_or(0, |c| c.committed_at_ms),
            signed_at: checkpoint.as_ref().map_or(0, |c| c.signed_at_ms),
            client: Some(ClientStatus {
                state: phase.as_str().into(),
                server: self.server.clone(),
                target_size: known.map_or(0, |known| known.checkpoint.size),
                lag_operations: self.lag_operations(),
                lag_seconds: self.lag_seconds(now),
                iterations: self.iterations.load(Ordering::Relaxed),
                operations_per_second: rate,
                eta_seconds: eta,
                last_error,
            }),
        }
    }
}
