//! Which trace the running work belongs to, on the wire and in exemplars.
//!
//! A context that a peer sent names its trace and nothing else: it decides nothing, and is used only
//! as the parent or link of spans of ours.

use opentelemetry::{
    Context, SpanId, TraceFlags, TraceId,
    trace::{SpanContext, TraceContextExt as _, TraceState},
};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric, exemplar::HistogramWithExemplars},
};
pub use syncd_proto::trace::TraceContext;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

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

impl TraceContextExt for TraceContext {
    fn current() -> Option<Self> {
        of(&Context::current())
    }

    fn of_span(span: &Span) -> Option<Self> {
        if span.is_disabled() { None } else { of(&span.context()) }
    }

    fn adopt(self, span: &Span) {
        let remote = remote(self);
        if remote.is_valid() && !span.is_disabled() {
            // Fails only for a span that has begun, whose trace stays as it is.
            let _ = span.set_parent(Context::new().with_remote_span_context(remote));
        }
    }

    fn link(self, span: &Span) {
        let remote = remote(self);
        if remote.is_valid() && !span.is_disabled() {
            span.add_link(remote);
        }
    }
}

fn of(context: &Context) -> Option<TraceContext> {
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| TraceContext {
        trace: span.trace_id().to_bytes(),
        span: span.span_id().to_bytes(),
        flags: span.trace_flags().to_u8(),
    })
}

fn remote(context: TraceContext) -> SpanContext {
    SpanContext::new(
        TraceId::from_bytes(context.trace),
        SpanId::from_bytes(context.span),
        TraceFlags::new(context.flags) & TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    )
}

/// Label of an exemplar.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TraceLabel {
    trace_id: String,
}

impl TraceLabel {
    /// The trace that an observation made now belongs to, if it is recorded.
    pub fn current() -> Option<Self> {
        let context = Context::current();
        let span = context.span();
        let span = span.span_context();
        (span.is_valid() && span.is_sampled())
            .then(|| Self { trace_id: span.trace_id().to_string() })
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
        let at = Context::new().with_remote_span_context(remote(context));
        assert_eq!(of(&at), Some(context));
    }

    #[test]
    fn nothing_is_traced_by_default_and_nonsense_is_no_parent() {
        assert_eq!(TraceContext::current(), None);
        assert!(TraceLabel::current().is_none());
        let nonsense = TraceContext { trace: [0; 16], span: [0; 8], flags: 0xff };
        assert!(!remote(nonsense).is_valid());
        nonsense.adopt(&Span::none());
        nonsense.link(&Span::none());
    }
}
