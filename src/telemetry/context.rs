//! Which trace the running work belongs to, on the wire and in exemplars.
//!
//! A context that a peer sent names its trace and nothing else: it decides nothing, and is used only
//! as the parent or link of spans of ours.

use commonware_codec::{Buf, Error as CodecError, FixedSize, Read, ReadExt as _, Write};
use commonware_runtime::BufMut;
use opentelemetry::{
    Context, SpanId, TraceFlags, TraceId,
    trace::{SpanContext, TraceContextExt as _, TraceState},
};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric, exemplar::HistogramWithExemplars},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The W3C context of a span, without the vendors' state: 25 bytes on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
    flags: u8,
}

impl TraceContext {
    /// The context of the span that this code runs in; `None` where nothing is traced.
    pub fn current() -> Option<Self> {
        Self::of(&Context::current())
    }

    /// The context of `span`; `None` if it is not traced.
    pub fn of_span(span: &Span) -> Option<Self> {
        if span.is_disabled() { None } else { Self::of(&span.context()) }
    }

    fn of(context: &Context) -> Option<Self> {
        let span = context.span();
        let span = span.span_context();
        span.is_valid().then(|| Self {
            trace: span.trace_id().to_bytes(),
            span: span.span_id().to_bytes(),
            flags: span.trace_flags().to_u8(),
        })
    }

    fn remote(self) -> SpanContext {
        SpanContext::new(
            TraceId::from_bytes(self.trace),
            SpanId::from_bytes(self.span),
            TraceFlags::new(self.flags) & TraceFlags::SAMPLED,
            true,
            TraceState::default(),
        )
    }

    /// Makes `span`, which has not begun, a child of this context.
    pub fn adopt(self, span: &Span) {
        let remote = self.remote();
        if remote.is_valid() && !span.is_disabled() {
            // Fails only for a span that has begun, whose trace stays as it is.
            let _ = span.set_parent(Context::new().with_remote_span_context(remote));
        }
    }

    /// Notes in `span` that it was caused by this context, too.
    pub fn link(self, span: &Span) {
        let remote = self.remote();
        if remote.is_valid() && !span.is_disabled() {
            span.add_link(remote);
        }
    }
}

impl Write for TraceContext {
    fn write(&self, buf: &mut impl BufMut) {
        self.trace.write(buf);
        self.span.write(buf);
        self.flags.write(buf);
    }
}

impl FixedSize for TraceContext {
    const SIZE: usize = 25;
}

impl Read for TraceContext {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        Ok(Self {
            trace: <[u8; 16]>::read(buf)?,
            span: <[u8; 8]>::read(buf)?,
            flags: u8::read(buf)?,
        })
    }
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
    use commonware_codec::{DecodeExt as _, Encode as _};

    #[test]
    fn a_context_survives_the_wire() {
        let context = TraceContext { trace: [7; 16], span: [8; 8], flags: 1 };
        let bytes = context.encode();
        assert_eq!(bytes.len(), TraceContext::SIZE);
        assert_eq!(TraceContext::decode(bytes).unwrap(), context);
        let remote = Context::new().with_remote_span_context(context.remote());
        assert_eq!(TraceContext::of(&remote), Some(context));
    }

    #[test]
    fn nothing_is_traced_by_default_and_nonsense_is_no_parent() {
        assert_eq!(TraceContext::current(), None);
        assert!(TraceLabel::current().is_none());
        let nonsense = TraceContext { trace: [0; 16], span: [0; 8], flags: 0xff };
        assert!(!nonsense.remote().is_valid());
        nonsense.adopt(&Span::none());
        nonsense.link(&Span::none());
    }
}
