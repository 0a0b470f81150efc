//! What a serving process measures of its peers.

use crate::{
    telemetry::{
        context::{DURATION_BUCKETS, TracedHistogram},
        storage::StorageErrors,
    },
    wire::Code,
};
use commonware_runtime::{Metrics as Registry, telemetry::metrics::Registered};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

/// Reasons to turn a peer away that are no refusal of the protocol.
const REASONS: [&str; 7] = [
    "connections",
    "handshake_rate",
    "handshakes",
    "handshake",
    "streams",
    "slow_reader",
    "false_claim",
];

/// Kind of a request.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RequestLabel {
    /// `checkpoint`, `checkpoint_at`, `operations`, `boundary`, `follow` or `watch`.
    pub request: &'static str,
}

/// Kind and outcome of a request.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ResultLabel {
    /// As in [`RequestLabel`].
    pub request: &'static str,
    /// `ok`, or the code of the refusal.
    pub result: &'static str,
}

/// Why a peer was turned away.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabel {
    /// `connections`, `handshake_rate`, `handshakes`, `handshake`, `unauthorized`,
    /// `unsupported_version`, `mismatch`, `malformed`, `streams`, `slow_reader`, `false_claim`, or
    /// the code of another refusal.
    pub reason: &'static str,
}

type Durations = Family<RequestLabel, TracedHistogram, fn() -> TracedHistogram>;

/// Metrics of sessions; registered as `syncd_server_*`.
pub struct Metrics {
    /// Open sessions.
    pub sessions: Registered<Gauge>,
    /// Sessions that follow the log.
    pub followers: Registered<Gauge>,
    /// Requests by kind and outcome.
    pub requests: Registered<Family<ResultLabel, Counter>>,
    /// Seconds from a request's arrival to its answer's queueing.
    pub request_duration: Registered<Durations>,
    /// Peers turned away.
    pub rejected: Registered<Family<ReasonLabel, Counter>>,
    /// Bytes of answers that are made or not yet read.
    pub unread_bytes: Registered<Gauge>,
    /// Bytes of answers and commits handed to connections.
    pub sent_bytes: Registered<Counter>,
    /// Failures of the storage, those of other parts of the process too.
    pub storage_errors: StorageErrors,
    /// Requests and answers that had to wait for their key's quota.
    pub throttled: Registered<Counter>,
}

impl Metrics {
    /// Registers the metrics under `registry`'s name.
    pub fn new(registry: &impl Registry, storage_errors: StorageErrors) -> Self {
        let histogram: fn() -> TracedHistogram = || TracedHistogram::new(DURATION_BUCKETS);
        let metrics = Self {
            sessions: registry.register("sessions", "Open sessions of replicas", Gauge::default()),
            followers: registry.register(
                "followers",
                "Sessions that follow the commit log",
                Gauge::default(),
            ),
            requests: registry.register(
                "requests",
                "Requests of replicas by kind and outcome",
                Family::default(),
            ),
            request_duration: registry.register(
                "request_duration_seconds",
                "Seconds from the arrival of a request until its answer is ready",
                Family::new_with_constructor(histogram),
            ),
            rejected: registry.register(
                "rejected",
                "Connections and requests turned away by reason",
                Family::default(),
            ),
            unread_bytes: registry.register(
                "unread_bytes",
                "Bytes of answers to replicas that are being made or are not yet read",
                Gauge::default(),
            ),
            sent_bytes: registry.register(
                "sent_bytes",
                "Bytes of answers and commits sent to replicas",
                Counter::default(),
            ),
            storage_errors,
            throttled: registry.register(
                "throttled",
                "Requests and answers that waited for the quota of their key",
                Counter::default(),
            ),
        };
        metrics.start_at_zero();
        metrics
    }

    /// A series that begins with its first event would hide that event from rates.
    fn start_at_zero(&self) {
        const REQUESTS: [&str; 6] =
            ["checkpoint", "checkpoint_at", "operations", "boundary", "follow", "watch"];
        for request in REQUESTS {
            let _ = self.requests.get_or_create(&ResultLabel { request, result: "ok" });
        }
        let own = REASONS.into_iter().chain(Code::ALL.map(Code::as_str));
        for reason in own {
            let _ = self.rejected.get_or_create(&ReasonLabel { reason });
        }
    }

    /// Counts a peer turned away.
    pub fn reject(&self, reason: &'static str) {
        self.rejected.get_or_create(&ReasonLabel { reason }).inc();
    }
}
