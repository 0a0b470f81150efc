//! What a [`TraceContext`](syncd_proto::trace::TraceContext) has to do with the running span. Without the feature `daemon` nothing is traced.

#[cfg(feature = "daemon")]
mod traced {
    use crate::telemetry::context::{TraceContext, TraceContextExt};
    use opentelemetry::{
        Context, SpanId, TraceFlags, TraceId,
        trace::{SpanContext, TraceContextExt as _, TraceState},
    };
    use tracing::Span;
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;

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
    use crate::telemetry::context::{TraceContext, TraceContextExt};
    use tracing::Span;

    impl TraceContextExt for TraceContext {
        fn current() -> Option<Self> {
            None
        }

        fn of_span(_: &Span) -> Option<Self> {
            None
        }

        fn adopt(self, _: &Span) {}

        fn link(self, _: &Span) {}
    }
}
