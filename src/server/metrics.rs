//! What a server measures of its writing.

use crate::{
    runtime::Step,
    serve::Metrics as ServeMetrics,
    telemetry::{context::TracedHistogram, storage::StorageErrors},
};
use commonware_runtime::{Metrics as Registry, telemetry::metrics::Registered};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

/// Buckets of commit durations: 100 µs to 10 s.
const COMMIT_BUCKETS: [f64; 16] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// Where changes come from.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct SourceLabel {
    /// `api` or `generator`.
    pub source: &'static str,
}

/// Which way a clock stepped.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct DirectionLabel {
    /// `back` or `ahead`.
    pub direction: &'static str,
}

/// Metrics of a server; registered as `syncd_server_*`.
pub struct Metrics {
    /// Changes committed by source.
    pub operations: Registered<Family<SourceLabel, Counter>>,
    /// Commits made.
    pub commits: Registered<Counter>,
    /// Times the root changed.
    pub root_changes: Registered<Counter>,
    /// Operations in the database.
    pub size: Registered<Gauge>,
    /// Sequence of the newest commit.
    pub sequence: Registered<Gauge>,
    /// Bytes of the commit log.
    pub log_bytes: Registered<Gauge>,
    /// Oldest sequence in the commit log.
    pub log_first_sequence: Registered<Gauge>,
    /// Seconds of a commit, from drained queue to acknowledgement.
    pub commit_duration: Registered<TracedHistogram>,
    /// Write requests waiting.
    pub queue_requests: Registered<Gauge>,
    /// Bytes of memory set aside for writes.
    pub queue_bytes: Registered<Gauge>,
    /// Idempotency keys remembered.
    pub idempotency_entries: Registered<Gauge>,
    /// Steps of the wall clock.
    pub clock_steps: Registered<Family<DirectionLabel, Counter>>,
    /// Operations that state syncs and exports hold beyond the retention.
    pub held_operations: Registered<Gauge>,
    /// Holds that ended because they kept too much.
    pub holds_lapsed: Registered<Counter>,
}

impl Metrics {
    /// Registers the metrics under `registry`'s name, those of sessions too.
    pub fn new(registry: &impl Registry, errors: StorageErrors) -> (Self, ServeMetrics) {
        let own = Self {
            operations: registry.register(
                "operations",
                "Changes committed by source",
                Family::default(),
            ),
            commits: registry.register("commits", "Commits made", Counter::default()),
            root_changes: registry.register(
                "root_changes",
                "Times the root of the database changed",
                Counter::default(),
            ),
            size: registry.register(
                "size_operations",
                "Operations in the database",
                Gauge::default(),
            ),
            sequence: registry.register(
                "sequence",
                "Sequence of the newest commit",
                Gauge::default(),
            ),
            log_bytes: registry.register(
                "log_bytes",
                "Bytes of all records in the commit log",
                Gauge::default(),
            ),
            log_first_sequence: registry.register(
                "log_first_sequence",
                "Oldest sequence in the commit log",
                Gauge::default(),
            ),
            commit_duration: registry.register(
                "commit_duration_seconds",
                "Seconds from the drained queue to the acknowledgement of a commit",
                TracedHistogram::new(COMMIT_BUCKETS),
            ),
            queue_requests: registry.register(
                "queue_requests",
                "Write requests waiting for the publisher",
                Gauge::default(),
            ),
            queue_bytes: registry.register(
                "queue_bytes",
                "Bytes of memory that write requests take while they are read and wait",
                Gauge::default(),
            ),
            idempotency_entries: registry.register(
                "idempotency_entries",
                "Idempotency keys remembered",
                Gauge::default(),
            ),
            clock_steps: registry.register(
                "clock_steps",
                "Steps of the machine's wall clock by a second or more, by direction",
                Family::default(),
            ),
            held_operations: registry.register(
                "held_operations",
                "Operations that state syncs and exports keep from being pruned",
                Gauge::default(),
            ),
            holds_lapsed: registry.register(
                "holds_lapsed",
                "State syncs and exports that kept too much, and were given up",
                Counter::default(),
            ),
        };
        for direction in Step::DIRECTIONS {
            let _ = own.clock_steps.get_or_create(&DirectionLabel { direction });
        }
        for source in ["api", "generator"] {
            let _ = own.operations.get_or_create(&SourceLabel { source });
        }
        (own, ServeMetrics::new(registry, errors))
    }
}
