//! What a replica measures of itself.

use super::phase::Phase;
use crate::{
    checkpoint::Refusal,
    link::LinkError,
    runtime::Step,
    telemetry::context::{DURATION_BUCKETS, TracedHistogram},
    wire::Code,
};
use commonware_runtime::{Metrics as Registry, telemetry::metrics::Registered};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use std::sync::atomic::AtomicU64;

/// Buckets of the delay from commit to replica: 1 ms to 100 s.
const DELAY_BUCKETS: [f64; 16] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];

/// A gauge of seconds.
pub type Seconds = Gauge<f64, AtomicU64>;

/// Kind of an iteration.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabel {
    /// `state_sync` or `follow`.
    pub kind: &'static str,
}

/// Kind and outcome of an iteration.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct IterationLabel {
    /// `state_sync` or `follow`.
    pub kind: &'static str,
    /// `ok` or `error`.
    pub result: &'static str,
}

/// A reason.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabel {
    /// A word from a fixed list of this program's.
    pub reason: &'static str,
}

/// Which way a clock stepped.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct DirectionLabel {
    /// `back` or `ahead`.
    pub direction: &'static str,
}

type Durations = Family<KindLabel, TracedHistogram, fn() -> TracedHistogram>;

/// Metrics of a client; registered as `syncd_client_*`.
#[allow(missing_docs, reason = "the help texts below are the documentation")]
pub struct Metrics {
    pub size: Registered<Gauge>,
    pub target_size: Registered<Gauge>,
    pub lag_operations: Registered<Gauge>,
    pub lag_seconds: Registered<Seconds>,
    pub signature_ahead: Registered<Seconds>,
    pub clock_steps: Registered<Family<DirectionLabel, Counter>>,
    pub iterations: Registered<Family<IterationLabel, Counter>>,
    pub root_changes: Registered<Counter>,
    pub iteration_duration: Registered<Durations>,
    pub commit_to_apply: Registered<TracedHistogram>,
    pub operations_applied: Registered<Counter>,
    pub received_bytes: Registered<Counter>,
    pub resumed_operations: Registered<Counter>,
    pub rejected: Registered<Family<ReasonLabel, Counter>>,
    pub equivocations: Registered<Counter>,
    pub reconnects: Registered<Family<ReasonLabel, Counter>>,
    pub connected: Registered<Gauge>,
    pub last_verified: Registered<Seconds>,
    pub stalled: Registered<Family<ReasonLabel, Gauge>>,
    pub state_sync_operations: Registered<Gauge>,
    pub state_sync_target: Registered<Gauge>,
    pub state_sync_eta: Registered<Seconds>,
}

impl Metrics {
    /// Registers the metrics under `registry`'s name.
    pub fn new(registry: &impl Registry) -> Self {
        let durations: fn() -> TracedHistogram = || TracedHistogram::new(DURATION_BUCKETS);
        let gauge = |name: &str, help: &str| registry.register(name, help, Gauge::default());
        let counter = |name: &str, help: &str| registry.register(name, help, Counter::default());
        let seconds = |name: &str, help: &str| registry.register(name, help, Seconds::default());
        let metrics = Self {
            size: gauge("size_operations", "Operations of the replica's verified state"),
            target_size: gauge(
                "target_size_operations",
                "Operations of the newest signed checkpoint known",
            ),
            lag_operations: gauge(
                "sync_lag_operations",
                "Operations that the replica is behind the newest signed checkpoint known",
            ),
            lag_seconds: seconds(
                "sync_lag_seconds",
                "Seconds since the replica last equalled a fresh signed checkpoint; 0 while it does",
            ),
            signature_ahead: seconds(
                "signature_ahead_seconds",
                "Seconds that the newest signature lies in the future, beyond the skew tolerated; else 0",
            ),
            clock_steps: registry.register(
                "clock_steps",
                "Steps of the machine's wall clock by a second or more, by direction",
                Family::default(),
            ),
            iterations: registry.register(
                "iterations",
                "Advances of the replica by kind and result",
                Family::default(),
            ),
            root_changes: counter("root_changes", "Times the root of the replica changed"),
            iteration_duration: registry.register(
                "iteration_duration_seconds",
                "Seconds of an advance, from received to applied",
                Family::new_with_constructor(durations),
            ),
            commit_to_apply: registry.register(
                "commit_to_apply_seconds",
                "Seconds from the publisher's commit until it is durable on the replica",
                TracedHistogram::new(DELAY_BUCKETS),
            ),
            operations_applied: counter("operations_applied", "Operations added to the replica"),
            received_bytes: counter("received_bytes", "Bytes received from servers"),
            resumed_operations: counter(
                "resumed_operations",
                "Operations of an interrupted state sync that were used again",
            ),
            rejected: registry.register(
                "rejected",
                "Checkpoints and answers that were refused, by reason",
                Family::default(),
            ),
            equivocations: counter(
                "equivocations",
                "Times the publisher was found to have signed two histories",
            ),
            reconnects: registry.register(
                "reconnects",
                "Connections that ended or could not be made, by reason",
                Family::default(),
            ),
            connected: gauge("connected", "1 while connected to a server"),
            last_verified: seconds(
                "last_verified_timestamp_seconds",
                "Unix time of the newest signature over the replica's state",
            ),
            stalled: registry.register(
                "stalled",
                "1 while the replica cannot advance, by reason",
                Family::default(),
            ),
            state_sync_operations: gauge(
                "state_sync_operations",
                "Operations of the running state sync that are held",
            ),
            state_sync_target: gauge(
                "state_sync_target_operations",
                "Operations of the running state sync's target; 0 while none runs",
            ),
            state_sync_eta: seconds(
                "state_sync_eta_seconds",
                "Seconds until the running state sync ends; 0 while none runs",
            ),
        };
        metrics.start_at_zero();
        metrics
    }

    /// Series that alerts look at exist from the start.
    fn start_at_zero(&self) {
        for kind in ["state_sync", "follow"] {
            let _ = self.iterations.get_or_create(&IterationLabel { kind, result: "ok" });
            let _ = self.iterations.get_or_create(&IterationLabel { kind, result: "error" });
        }
        for reason in REJECTIONS.into_iter().chain(Refusal::REASONS) {
            let _ = self.rejected.get_or_create(&ReasonLabel { reason });
        }
        for reason in LinkError::REASONS.into_iter().chain(Code::ALL.map(Code::as_str)) {
            let _ = self.reconnects.get_or_create(&ReasonLabel { reason });
        }
        for direction in Step::DIRECTIONS {
            let _ = self.clock_steps.get_or_create(&DirectionLabel { direction });
        }
        for reason in Phase::STALLS {
            let _ = self.stalled.get_or_create(&ReasonLabel { reason });
        }
    }

    /// Says why the replica cannot advance; `None` if it can.
    pub fn set_stalled(&self, reason: Option<&'static str>) {
        for known in Phase::STALLS {
            let stalled = i64::from(reason == Some(known));
            self.stalled.get_or_create(&ReasonLabel { reason: known }).set(stalled);
        }
    }

    /// Counts something refused.
    pub fn reject(&self, reason: &'static str) {
        self.rejected.get_or_create(&ReasonLabel { reason }).inc();
    }
}

/// What is refused beyond checkpoints.
const REJECTIONS: [&str; 5] = ["boundary", "commit_root", "proof", "protocol", "root"];
