//! What is measured of connections.

use super::activity::Reason;
use commonware_runtime::{Metrics as Registry, telemetry::metrics::Registered};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

/// The ports of a daemon.
const PORTS: [&str; 2] = ["api", "metrics"];

/// A port.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PortLabel {
    /// `api` or `metrics`.
    pub port: &'static str,
}

/// Why a connection was closed from this side.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RejectLabel {
    /// As in [`PortLabel`].
    pub port: &'static str,
    /// `idle`, `slow_reader`, `slow_body`, `long`, or `answers` (an answer that was refused).
    pub reason: &'static str,
}

/// Held to stay registered.
type Held<L, M> = Registered<Family<L, M>>;

/// Metrics of HTTP connections; registered as `syncd_http_*`.
#[derive(Default)]
pub struct Metrics {
    /// Connections open.
    pub connections: Family<PortLabel, Gauge>,
    /// Connections closed from this side.
    pub rejected: Family<RejectLabel, Counter>,
    _registered: Option<(Held<PortLabel, Gauge>, Held<RejectLabel, Counter>)>,
}

impl Metrics {
    /// Registers the metrics under `registry`'s name.
    pub fn new(registry: &impl Registry) -> Self {
        let (connections, rejected) =
            (Family::<PortLabel, Gauge>::default(), Family::<RejectLabel, Counter>::default());
        for port in PORTS {
            let _ = connections.get_or_create(&PortLabel { port });
            for reason in Reason::ALL {
                let _ = rejected.get_or_create(&RejectLabel { port, reason: reason.as_str() });
            }
        }
        let registered = (
            registry.register(
                "connections",
                "Connections open on an HTTP port",
                connections.clone(),
            ),
            registry.register(
                "rejected",
                "HTTP connections closed from this side, and answers refused, by port and reason",
                rejected.clone(),
            ),
        );
        Self { connections, rejected, _registered: Some(registered) }
    }
}
