//! What a server measures of its writing.

use crate::serve::Metrics as ServeMetrics;
use commonware_runtime::{Metrics as Registry, telemetry::metrics::Registered};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
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

/// Which use of the storage failed.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct OperationLabel {
    /// `commit`, `maintain` or `read`.
    pub operation: &'static str,
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
    /// Bytes of the commit log.
    pub log_bytes: Registered<Gauge>,
    /// Oldest sequence in the commit log.
    pub log_first_sequence: Registered<Gauge>,
    /// Seconds of a commit, from drained queue to acknowledgement.
    pub commit_duration: Registered<Histogram>,
    /// Write requests waiting.
    pub queue_requests: Registered<Gauge>,
    /// Idempotency keys remembered.
    pub idempotency_entries: Registered<Gauge>,
}

impl Metrics {
    /// Registers the metrics under `registry`'s name, those of sessions too.
    pub fn new(registry: &impl Registry) -> (Self, ServeMetrics) {
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
                Histogram::new(COMMIT_BUCKETS),
            ),
            queue_requests: registry.register(
                "queue_requests",
                "Write requests waiting for the publisher",
                Gauge::default(),
            ),
            idempotency_entries: registry.register(
                "idempotency_entries",
                "Idempotency keys remembered",
                Gauge::default(),
            ),
        };
        (own, ServeMetrics::new(registry))
    }
}

/// `syncd_storage_errors_total`, which servers and clients share.
pub struct StorageErrors(Registered<Family<OperationLabel, Counter>>);

impl StorageErrors {
    /// Registers the metric; `registry` is the one of the product.
    pub fn new(registry: &impl Registry) -> Self {
        Self(registry.register(
            "storage_errors",
            "Failures of the storage by what was done with it",
            Family::default(),
        ))
    }

    /// Counts a failure.
    pub fn count(&self, operation: &'static str) {
        self.0.get_or_create(&OperationLabel { operation }).inc();
    }
}
