//! Memory that peers can make a server hold in answers: bounded for each connection and in all.
//!
//! Whoever makes an answer reserves its largest size first, gives back what it did not need, and
//! keeps the rest until the answer is written. A peer that does not read therefore stops being
//! worked for; if such peers hold most of the budget, the slowest are disconnected, so that they
//! cannot keep it from the others.

use super::limits::{
    CONNECTION_BYTES_MAX, SLOW_READER_AFTER, SLOW_READER_AFTER_UNDER_PRESSURE, TOTAL_BYTES_MAX,
};
use crate::{link::Outgoing, runtime::Runtime};
use bytes::Bytes;
use commonware_utils::sync::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Semaphores count in steps of so many bytes.
const STEP: usize = 1024;
/// How often readers are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The budget of a server.
pub(crate) struct Budget {
    free: Arc<Semaphore>,
    readers: Mutex<BTreeMap<u64, Arc<Reader>>>,
    next_id: AtomicU64,
}

/// One connection's part in it.
pub(crate) struct Reader {
    id: u64,
    budget: Arc<Budget>,
    free: Arc<Semaphore>,
    /// Answers that wait to be written, or are being written.
    waiting: AtomicU64,
    /// Answers written.
    written: AtomicU64,
    cut: Notify,
}

/// A part of the budget. Dropping it gives it back.
pub(crate) struct Reservation {
    reader: Arc<Reader>,
    own: Option<OwnedSemaphorePermit>,
    total: Option<OwnedSemaphorePermit>,
    is_queued: bool,
}

/// What `bytes` take; never more than a connection may have.
fn steps(bytes: usize) -> u32 {
    u32::try_from(bytes.min(CONNECTION_BYTES_MAX).div_ceil(STEP)).unwrap_or(u32::MAX)
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            free: Arc::new(Semaphore::new(TOTAL_BYTES_MAX / STEP)),
            readers: Mutex::default(),
            next_id: AtomicU64::new(0),
        }
    }
}

impl Budget {
    /// A part for a new connection.
    pub(crate) fn reader(self: &Arc<Self>) -> Arc<Reader> {
        let reader = Arc::new(Reader {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            budget: self.clone(),
            free: Arc::new(Semaphore::new(CONNECTION_BYTES_MAX / STEP)),
            waiting: AtomicU64::new(0),
            written: AtomicU64::new(0),
            cut: Notify::new(),
        });
        self.readers.lock().insert(reader.id, reader.clone());
        reader
    }

    /// Bytes reserved.
    pub(crate) fn used(&self) -> usize {
        TOTAL_BYTES_MAX - self.free.available_permits() * STEP
    }

    /// Disconnects readers that do not read, for ever. `report` is told what is used.
    pub(crate) async fn watch<E: Runtime>(
        self: Arc<Self>,
        context: E,
        report: impl Fn(usize) + Send,
    ) {
        let mut seen: HashMap<u64, (u64, Duration)> = HashMap::new();
        loop {
            context.sleep(LOOK_INTERVAL).await;
            let used = self.used();
            report(used);
            let patience = if used > TOTAL_BYTES_MAX / 4 * 3 {
                SLOW_READER_AFTER_UNDER_PRESSURE
            } else {
                SLOW_READER_AFTER
            };
            let mut now = HashMap::new();
            for (id, reader) in self.readers.lock().iter() {
                if reader.waiting.load(Ordering::Relaxed) == 0 {
                    continue;
                }
                let written = reader.written.load(Ordering::Relaxed);
                let stalled = match seen.get(id) {
                    Some((before, stalled)) if *before == written => *stalled + LOOK_INTERVAL,
                    _ => Duration::ZERO,
                };
                if stalled >= patience {
                    reader.cut.notify_one();
                }
                now.insert(*id, (written, stalled));
            }
            seen = now;
        }
    }
}

impl Reader {
    /// Reserves `bytes` for an answer; waits until the connection, and the server, have room.
    pub(crate) async fn reserve(self: &Arc<Self>, bytes: usize) -> Reservation {
        let steps = steps(bytes);
        // The semaphores are never closed.
        let own = self.free.clone().acquire_many_owned(steps).await.ok();
        let total = self.budget.free.clone().acquire_many_owned(steps).await.ok();
        Reservation { reader: self.clone(), own, total, is_queued: false }
    }

    /// Waits until this reader was found too slow.
    pub(crate) async fn cut(&self) {
        self.cut.notified().await;
    }

    /// Ends the connection's part in the budget.
    pub(crate) fn leave(&self) {
        self.budget.readers.lock().remove(&self.id);
    }
}

impl Reservation {
    /// The frame on its way out; keeps what it needs of the reservation until it is written.
    pub(crate) fn queue(mut self, frame: Bytes) -> Outgoing {
        let keep = steps(frame.len()) as usize;
        for permit in [&mut self.own, &mut self.total].into_iter().flatten() {
            drop(permit.split(permit.num_permits().saturating_sub(keep)));
        }
        self.is_queued = true;
        self.reader.waiting.fetch_add(1, Ordering::Relaxed);
        Outgoing::holding(frame, Box::new(self))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.is_queued {
            self.reader.waiting.fetch_sub(1, Ordering::Relaxed);
            self.reader.written.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use commonware_runtime::{
        Clock as _, Runner as _, Spawner as _, Supervisor as _, deterministic,
    };

    #[test]
    fn what_is_written_is_given_back() {
        deterministic::Runner::default().start(|_| async move {
            let budget = Arc::new(Budget::default());
            let reader = budget.reader();
            let reservation = reader.reserve(CONNECTION_BYTES_MAX * 2).await;
            assert_eq!(budget.used(), CONNECTION_BYTES_MAX);
            let frame = reservation.queue(Bytes::from_static(b"small"));
            assert_eq!(budget.used(), STEP);
            assert_eq!(reader.waiting.load(Ordering::Relaxed), 1);
            drop(frame);
            assert_eq!(budget.used(), 0);
            assert_eq!(reader.waiting.load(Ordering::Relaxed), 0);
        });
    }

    /// Readers that do not read fill the budget; one that comes later is served all the same.
    #[test]
    fn slow_readers_do_not_keep_the_budget() {
        deterministic::Runner::default().start(|context| async move {
            let budget = Arc::new(Budget::default());
            let watching = budget.clone();
            context.child("watch").spawn(|context| watching.watch(context, |_| {}));
            let mut slow = Vec::new();
            for _ in 0..TOTAL_BYTES_MAX / CONNECTION_BYTES_MAX {
                let reader = budget.reader();
                let reservation = reader.reserve(CONNECTION_BYTES_MAX).await;
                let frame = reservation.queue(Bytes::from(vec![0; CONNECTION_BYTES_MAX]));
                slow.push(context.child("slow").spawn(|_| async move {
                    reader.cut().await;
                    reader.leave();
                    drop(frame);
                }));
            }
            assert_eq!(budget.used(), TOTAL_BYTES_MAX);
            let started = context.current();
            let reader = budget.reader();
            let _reservation = reader.reserve(CONNECTION_BYTES_MAX).await;
            let waited = context.current().duration_since(started).unwrap();
            assert!(waited < SLOW_READER_AFTER_UNDER_PRESSURE * 3, "{waited:?}");
            for slow in slow {
                slow.await.unwrap();
            }
        });
    }

    /// Without pressure, a reader has longer.
    #[test]
    fn a_reader_that_stands_still_is_cut_in_the_end() {
        deterministic::Runner::default().start(|context| async move {
            let budget = Arc::new(Budget::default());
            let watching = budget.clone();
            context.child("watch").spawn(|context| watching.watch(context, |_| {}));
            let reader = budget.reader();
            let _frame = reader.reserve(10).await.queue(Bytes::from_static(b"unread"));
            let started = context.current();
            reader.cut().await;
            let waited = context.current().duration_since(started).unwrap();
            assert!(waited >= SLOW_READER_AFTER && waited < SLOW_READER_AFTER * 2, "{waited:?}");
        });
    }
}
