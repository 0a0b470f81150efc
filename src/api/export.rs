//! Streams a consistent state as lines of JSON, in pages of which one waits at most.
//!
//! An export holds the operations of its state back from pruning, and the one place for exports.
//! So its reader has to keep a rate, and it ends after a time that its size allows. What is cut is
//! an incomplete body, never one that looks complete.

use super::{Backend, drain::Drain, ndjson, observe::Metrics, problem::Problem};
use crate::{
    http::Patience,
    reads::{Entry, Export, Name, ReadError, View},
};
use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};

/// Exports at once: each remembers the keys it has seen.
pub(super) const EXPORTS_AT_ONCE_MAX: usize = 1;
/// How long the reader of an export may not read.
pub(super) const EXPORT_STALL_MAX: Duration = Duration::from_secs(30);
/// The slowest that an export may be read for longer than that, in bytes of keys and values a
/// second.
pub(super) const EXPORT_RATE_MIN: u64 = 64 * 1024;
/// When to come back where an export is running.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// How an export ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Complete,
    /// The reader went away.
    Abandoned,
    SlowReader,
    HeldTooLong,
    Draining,
    /// The state could not be read on.
    Failed,
}

impl End {
    pub(super) const ALL: [Self; 6] = [
        Self::Complete,
        Self::Abandoned,
        Self::SlowReader,
        Self::HeldTooLong,
        Self::Draining,
        Self::Failed,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Abandoned => "abandoned",
            Self::SlowReader => "slow_reader",
            Self::HeldTooLong => "held_too_long",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}

/// Places for exports, and what ends those that run.
#[derive(Clone)]
pub(super) struct Exports {
    places: Arc<Semaphore>,
    drain: Drain,
    metrics: Arc<Metrics>,
}

impl Exports {
    pub(super) fn new(drain: Drain, metrics: Arc<Metrics>) -> Self {
        Self { places: Arc::new(Semaphore::new(EXPORTS_AT_ONCE_MAX)), drain, metrics }
    }

    /// An answer that streams the state held now.
    pub(super) async fn start(&self, backend: &dyn Backend) -> Result<(View, Response), Problem> {
        if self.drain.has_begun() {
            return Err(Problem::draining());
        }
        let place = self.places.clone().try_acquire_owned().map_err(|_| ReadError::Busy {
            message: "another export is running".into(),
            retry_after: RETRY_AFTER,
        })?;
        let Export { view, entries, hold_max } = backend.export().await?;
        let (sender, received) = mpsc::channel(1);
        let patience = Patience::new(EXPORT_STALL_MAX, EXPORT_RATE_MIN);
        let drain = self.drain.clone();
        let pump = Pump { drain, patience, hold_max, entries, pages: sender };
        tokio::spawn(pump.run_in(place, self.metrics.clone()));
        let mut response = Response::new(Body::from_stream(lines(received)));
        let kind = HeaderValue::from_static("application/x-ndjson");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Ok((view, response))
    }
}

/// A page of an export; `Ok(None)` at its end.
type Page = Result<Option<Vec<Entry>>, ReadError>;

/// Hands the pages of an export on to its reader.
struct Pump {
    drain: Drain,
    patience: Patience,
    hold_max: Duration,
    entries: mpsc::Receiver<Page>,
    pages: mpsc::Sender<Page>,
}

impl Pump {
    /// Runs, and gives the place back when the reader is done or was given up.
    async fn run_in(self, place: OwnedSemaphorePermit, metrics: Arc<Metrics>) {
        let hold_max = self.hold_max;
        let end = self.run().await;
        drop(place);
        metrics.count_export(end);
        let reason = end.as_str();
        match end {
            End::Complete | End::Abandoned => tracing::debug!(reason, "an export ended"),
            End::Draining => tracing::info!(reason, "an export was cut"),
            End::Failed => tracing::error!(reason, "an export was cut: its state cannot be read"),
            End::SlowReader => tracing::warn!(
                reason,
                stall_max_s = EXPORT_STALL_MAX.as_secs(),
                bytes_per_second_min = EXPORT_RATE_MIN,
                "an export was cut: its reader is too slow"
            ),
            End::HeldTooLong => tracing::warn!(
                reason,
                hold_max_s = hold_max.as_secs(),
                "an export was cut: it held its state for too long"
            ),
        }
    }

    /// Ends without the last page where the export is cut: then the channel closes before its end,
    /// which cuts the body short.
    async fn run(mut self) -> End {
        let held = tokio::time::sleep(self.hold_max);
        let draining = self.drain.begun();
        tokio::pin!(held, draining);
        loop {
            let page = tokio::select! {
                biased;
                () = &mut draining => return End::Draining,
                () = &mut held => return End::HeldTooLong,
                page = self.entries.recv() => page,
            };
            let Some(page) = page else { return End::Failed };
            let end = match &page {
                // Nothing to hand on, and nothing to wait for.
                Ok(Some(entries)) if entries.is_empty() => continue,
                Ok(Some(_)) => None,
                Ok(None) => Some(End::Complete),
                Err(error) => {
                    tracing::debug!(%error, "an export cannot be read on");
                    Some(End::Failed)
                }
            };
            let bytes = bytes_of(&page);
            let waiting = Instant::now();
            tokio::select! {
                biased;
                () = &mut draining => return End::Draining,
                () = &mut held => return End::HeldTooLong,
                sent = tokio::time::timeout(self.patience.left(), self.pages.send(page)) => match sent {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return End::Abandoned,
                    Err(_) => return End::SlowReader,
                },
            }
            if let Some(end) = end {
                return end;
            }
            self.patience.waited(waiting.elapsed());
            self.patience.moved(bytes);
        }
    }
}

/// Bytes of the keys and values of a page.
fn bytes_of(page: &Page) -> usize {
    let Ok(Some(entries)) = page else { return 0 };
    let name = |name: &Name| match name {
        Name::Key(key) => key.len(),
        Name::Location(_) => size_of::<u64>(),
    };
    entries.iter().map(|entry| name(&entry.name) + entry.value.len()).sum()
}

/// The lines of an export. An error, or an end that was not announced, cuts the body short, which
/// HTTP shows as an incomplete one.
fn lines(pages: mpsc::Receiver<Page>) -> impl futures::Stream<Item = Result<Bytes, ReadError>> {
    futures::stream::unfold(Some(pages), |pages| async move {
        let mut pages = pages?;
        match pages.recv().await {
            Some(Ok(Some(page))) => {
                let mut lines = Vec::new();
                page.iter().for_each(|entry| ndjson::write(entry, &mut lines));
                Some((Ok(Bytes::from(lines)), Some(pages)))
            }
            Some(Ok(None)) => None,
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((Err(ReadError::Internal("the export was cut".into())), None)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch;

    const STALL_MAX: Duration = Duration::from_millis(300);
    const RATE_MIN: u64 = 100_000;

    /// A pump over `count` pages of `bytes` each, and where its reader reads.
    fn pump(
        count: usize,
        bytes: usize,
        hold_max: Duration,
    ) -> (Pump, mpsc::Receiver<Page>, watch::Sender<bool>) {
        let (source, entries) = mpsc::channel(1);
        tokio::spawn(async move {
            for _ in 0..count {
                let value = Bytes::from(vec![7; bytes]);
                let entry = Entry { name: Name::Key(Bytes::new()), value };
                let _ = source.send(Ok(Some(vec![entry]))).await;
            }
            let _ = source.send(Ok(None)).await;
        });
        let (pages, reader) = mpsc::channel(1);
        let (drain, draining) = watch::channel(false);
        let patience = Patience::new(STALL_MAX, RATE_MIN);
        (Pump { drain: Drain::new(draining), patience, hold_max, entries, pages }, reader, drain)
    }

    /// Reads a page each `pause`; whether that led to the end.
    async fn read_slowly(mut reader: mpsc::Receiver<Page>, pause: Duration) -> bool {
        loop {
            tokio::time::sleep(pause).await;
            match reader.recv().await {
                Some(Ok(Some(_))) => {}
                Some(Ok(None)) => return true,
                Some(Err(_)) | None => return false,
            }
        }
    }

    #[tokio::test]
    async fn a_reader_has_to_keep_the_rate() {
        for (pages, bytes, pause, expected) in [
            // Well above the rate, for longer than any stall.
            (40, 10_000, STALL_MAX / 30, End::Complete),
            // A page now and then: never still for long, and for ever.
            (1000, 100, STALL_MAX / 3, End::SlowReader),
            (1000, 100, STALL_MAX * 2, End::SlowReader),
        ] {
            let (pump, reader, _drain) = pump(pages, bytes, Duration::from_secs(600));
            let started = Instant::now();
            let reading = tokio::spawn(read_slowly(reader, pause));
            assert_eq!(pump.run().await, expected, "{pages} {pause:?}");
            if expected == End::SlowReader {
                assert!(started.elapsed() < STALL_MAX * 10, "{:?}", started.elapsed());
            }
            let complete = matches!(reading.await, Ok(true));
            assert_eq!(complete, expected == End::Complete, "a cut export shows");
        }
    }

    #[tokio::test]
    async fn a_state_is_held_for_a_bounded_time() {
        let hold = Duration::from_millis(500);
        let (pump, reader, _drain) = pump(1_000_000, 10_000, hold);
        let started = Instant::now();
        let reading = tokio::spawn(read_slowly(reader, Duration::from_millis(5)));
        assert_eq!(pump.run().await, End::HeldTooLong);
        assert!((hold..hold * 10).contains(&started.elapsed()), "{:?}", started.elapsed());
        assert!(matches!(reading.await, Ok(false)));
    }

    #[tokio::test]
    async fn draining_cuts_at_once() {
        let (pump, reader, drain) = pump(1_000_000, 10_000, Duration::from_secs(600));
        let reading = tokio::spawn(read_slowly(reader, Duration::from_millis(5)));
        let running = tokio::spawn(pump.run());
        drain.send_replace(true);
        assert!(matches!(running.await, Ok(End::Draining)));
        assert!(matches!(reading.await, Ok(false)));
    }
}
