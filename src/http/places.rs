//! The places of a port: how many connections it has, and which of them makes room for a new one.

use super::{
    Port,
    activity::{Activity, Reason},
    metrics::{Metrics, PortLabel, RejectLabel},
};
use commonware_utils::sync::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::AbortHandle,
};

/// How often a full port is looked at while a connection waits for a place.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// For how long a port counts as crowded after a connection had to wait for a place.
const CROWDED_FOR: Duration = Duration::from_secs(1);

/// The connections of a port.
pub(super) struct Places {
    port: &'static str,
    /// How long a connection has its place on a full port, whatever it does with it.
    place_max: Option<Duration>,
    crowd: Arc<Crowd>,
    free: Arc<Semaphore>,
    open: Arc<Mutex<HashMap<u64, Open>>>,
    next: AtomicU64,
    metrics: Arc<Metrics>,
}

/// Whether connections wait for places of a port. While they do, a connection has its place for one
/// answer.
#[derive(Default)]
pub(super) struct Crowd(Mutex<Option<Instant>>);

impl Crowd {
    fn note(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    pub(super) fn is_there(&self) -> bool {
        self.0.lock().is_some_and(|noted| noted.elapsed() < CROWDED_FOR)
    }
}

/// A connection, and how it is ended.
struct Open {
    activity: Arc<Activity>,
    task: AbortHandle,
}

/// A connection's place; given back when dropped.
pub(super) struct Place {
    id: u64,
    open: Arc<Mutex<HashMap<u64, Open>>>,
    metrics: Arc<Metrics>,
    port: &'static str,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.lock().remove(&self.id);
        self.metrics.connections.get_or_create(&PortLabel { port: self.port }).dec();
    }
}

impl Places {
    pub(super) fn new(port: &Port) -> Self {
        Self {
            port: port.name,
            place_max: port.place_max,
            crowd: Arc::default(),
            free: Arc::new(Semaphore::new(port.connections_max)),
            open: Arc::default(),
            next: AtomicU64::new(0),
            metrics: port.metrics.clone(),
        }
    }

    /// Whether connections wait for places.
    pub(super) fn crowd(&self) -> Arc<Crowd> {
        self.crowd.clone()
    }

    /// A place, as soon as there is one. While there is none, a connection that waits for its peer
    /// is closed: the one on which nothing has moved for longest, else the slowest.
    pub(super) async fn take(&self) -> Place {
        let permit = loop {
            if let Ok(permit) = self.free.clone().try_acquire_owned() {
                break permit;
            }
            self.crowd.note();
            self.make_room();
            let freed = self.free.clone().acquire_owned();
            if let Ok(Ok(permit)) = tokio::time::timeout(LOOK_INTERVAL, freed).await {
                break permit;
            }
        };
        self.metrics.connections.get_or_create(&PortLabel { port: self.port }).inc();
        Place {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            open: self.open.clone(),
            metrics: self.metrics.clone(),
            port: self.port,
            _permit: permit,
        }
    }

    /// Runs `connection` in a task of its own that has `place`.
    pub(super) fn run(
        &self,
        place: Place,
        activity: Arc<Activity>,
        connection: impl Future<Output = ()> + Send + 'static,
    ) {
        let id = place.id;
        // Before the task can end and look for its entry.
        let mut open = self.open.lock();
        let task = tokio::spawn(async move {
            let _place = place;
            connection.await;
        });
        open.insert(id, Open { activity, task: task.abort_handle() });
    }

    /// Counts a connection that was closed from this side.
    pub(super) fn count(metrics: &Metrics, port: &'static str, reason: Reason) {
        let label = RejectLabel { port, reason: reason.as_str() };
        metrics.rejected.get_or_create(&label).inc();
    }

    fn make_room(&self) {
        let mut open = self.open.lock();
        let expendable = open.iter().filter_map(|(id, connection)| {
            let reason = connection.activity.expendable()?;
            Some((connection.activity.quiet(), *id, reason))
        });
        let quietest = expendable.max_by_key(|(quiet, ..)| *quiet);
        let chosen = quietest.or_else(|| slowest(&open)).or_else(|| self.longest(&open));
        let Some((quiet, id, reason)) = chosen else { return };
        if let Some(connection) = open.remove(&id) {
            connection.task.abort();
            Self::count(&self.metrics, self.port, reason);
            tracing::debug!(
                port = self.port,
                reason = reason.as_str(),
                quiet_ms = quiet.as_millis(),
                "a connection made room for another"
            );
        }
    }

    /// The connection that has had its place for longest, where that is bounded.
    fn longest(&self, open: &HashMap<u64, Open>) -> Option<(Duration, u64, Reason)> {
        let place_max = self.place_max?;
        let ages = open.iter().map(|(id, connection)| (connection.activity.age(), *id));
        let (age, id) = ages.max_by_key(|(age, _)| *age)?;
        (age >= place_max).then_some((age, id, Reason::Long))
    }

    /// Ends what would keep a draining port waiting for its peer: connections without a request,
    /// and answers that nobody takes.
    pub(super) fn end_quiet(&self) {
        self.open.lock().retain(|_, connection| {
            let reason = connection.activity.expendable();
            let ends = matches!(reason, Some(Reason::Idle | Reason::SlowReader));
            if ends {
                connection.task.abort();
            }
            !ends
        });
    }
}

/// The connection whose peer sends or takes its part of a request with the fewest bytes a second.
fn slowest(open: &HashMap<u64, Open>) -> Option<(Duration, u64, Reason)> {
    let slow = open.iter().filter_map(|(id, connection)| {
        let (rate, reason) = connection.activity.slowness()?;
        Some((rate, *id, connection.activity.quiet(), reason))
    });
    let (_, id, quiet, reason) = slow.min_by_key(|(rate, id, ..)| (*rate, *id))?;
    Some((quiet, id, reason))
}
