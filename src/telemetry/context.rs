//! Which trace the running work belongs to, on the wire and in exemplars.
//!
//! A context that a peer sent names its trace and nothing else: it decides nothing, and is used only
//! as the parent or link of spans of ours.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric, exemplar::HistogramWithExemplars},
};
pub use syncd_proto::trace::TraceContext;
use tracing::Span;

/// The flag of a trace that is recorded (W3C).
const SAMPLED: u8 = 1;

/// Buckets that resolve 1 ms to 100 s.
pub const DURATION_BUCKETS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0,
];

/// What a [`TraceContext`] has to do with the spans of this process.
pub trait TraceContextExt: Sized {
    /// The context of the span that this code runs in; `None` where nothing is traced.
    fn current() -> Option<Self>;

    /// The context of `span`; `None` if it is not traced.
    fn of_span(span: &Span) -> Option<Self>;

    /// Makes `span`, which has not begun, a child of this context.
    fn adopt(self, span: &Span);

    /// Notes in `span` that it was caused by this context, too.
    fn link(self, span: &Span);
}

/// Label of an exemplar.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TraceLabel {
    trace_id: String,
}

impl TraceLabel {
    /// The trace that an observation made now belongs to, if it is recorded.
    pub fn current() -> Option<Self> {
        let context = TraceContext::current().filter(|context| context.flags & SAMPLED != 0)?;
        Some(Self { trace_id: hex::encode(context.trace) })
    }
}

/// A histogram whose buckets name a trace as example.
#[derive(Clone, Debug)]
pub struct TracedHistogram(HistogramWithExemplars<TraceLabel>);

impl TracedHistogram {
    /// A histogram of seconds with these bounds.
    pub fn new(bounds: impl IntoIterator<Item = f64>) -> Self {
        Self(HistogramWithExemplars::new(bounds.into_iter()))
    }

    /// Observes `seconds`, with the running trace as example.
    pub fn observe(&self, seconds: f64) {
        self.0.observe(seconds, TraceLabel::current(), None);
    }
}

impl TypedMetric for TracedHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for TracedHistogram {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use commonware_codec::{DecodeExt as _, Encode as _, FixedSize as _};

    #[test]
    fn a_context_survives_the_wire() {
        let context = TraceContext { trace: [7; 16], span: [8; 8], flags: 1 };
        let bytes = context.encode();
        assert_eq!(bytes.len(), TraceContext::SIZE);
        assert_eq!(TraceContext::decode(bytes).unwrap(), context);
    }

    #[test]
    fn nothing_is_traced_by_default_and_nonsense_is_no_parent() {
        assert_eq!(TraceContext::current(), None);
        assert!(TraceLabel::current().is_none());
        let nonsense = TraceContext { trace: [0; 16], span: [0; 8], flags: 0xff };
        nonsense.adopt(&Span::none());
        nonsense.link(&Span::none());
    }
}
