//! The running span, for [`super::context`]. Without the feature `daemon` nothing is traced.

#[cfg(feature = "daemon")]
pub(super) use traced::*;
#[cfg(not(feature = "daemon"))]
pub(super) use untraced::*;

#[cfg(feature = "daemon")]
mod traced {
    use opentelemetry::{
        Context, SpanId, TraceFlags, TraceId,
        trace::{SpanContext, TraceContextExt as _, TraceState},
    };
    use syncd_proto::trace::TraceContext;
    use tracing::Span;
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;

    pub(in crate::telemetry) fn current() -> Option<TraceContext> {
        of(&Context::current())
    }

    pub(in crate::telemetry) fn of_span(span: &Span) -> Option<TraceContext> {
        if span.is_disabled() { None } else { of(&span.context()) }
    }

    pub(in crate::telemetry) fn adopt(context: TraceContext, span: &Span) {
        let remote = remote(context);
        if remote.is_valid() && !span.is_disabled() {
            // Fails only for a span that has begun, whose trace stays as it is.
            let _ = span.set_parent(Context::new().with_remote_span_context(remote));
        }
    }

    pub(in crate::telemetry) fn link(context: TraceContext, span: &Span) {
        let remote = remote(context);
        if remote.is_valid() && !span.is_disabled() {
            span.add_link(remote);
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

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_remote_context_is_found_again() {
            let context = TraceContext { trace: [7; 16], span: [8; 8], flags: 1 };
            let at = Context::new().with_remote_span_context(remote(context));
            assert_eq!(of(&at), Some(context));
        }
    }
}

#[cfg(not(feature = "daemon"))]
mod untraced {
    use syncd_proto::trace::TraceContext;
    use tracing::Span;

    pub(in crate::telemetry) const fn current() -> Option<TraceContext> {
        None
    }

    pub(in crate::telemetry) const fn of_span(_: &Span) -> Option<TraceContext> {
        None
    }

    pub(in crate::telemetry) const fn adopt(_: TraceContext, _: &Span) {}

    pub(in crate::telemetry) const fn link(_: TraceContext, _: &Span) {}
}
