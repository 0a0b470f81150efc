//! Starting and flushing logs and traces.

use super::{logs, traces};
use tracing_subscriber::{Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Logs and traces of a process.
pub struct Telemetry {
    /// Level of the log.
    pub level: logs::Level,
    /// Spans exported and failed.
    pub spans: traces::SpanCounts,
    traces: Option<traces::Traces>,
}

impl Telemetry {
    /// Starts logging, and exporting traces if the environment asks for it. Touches no port and no
    /// file. Later calls in one process (tests) change nothing.
    pub fn start(
        service: &'static str,
        format: Option<logs::LogFormat>,
        level: &str,
    ) -> Result<Self, String> {
        let spans = traces::SpanCounts::default();
        let traces = traces::start(service, &spans)?;
        let (log, level) = logs::layer(format, level)?;
        // Spans have a level of their own: a quiet log does not cut holes into traces.
        let spans_layer = traces.as_ref().map(|traces| {
            tracing_opentelemetry::layer()
                .with_tracer(traces.tracer())
                .with_threads(false)
                .with_target(false)
                .with_location(false)
                .with_tracked_inactivity(false)
                .with_filter(logs::own_spans())
        });
        // Somebody set up logging before us: theirs stays.
        let _ = tracing_subscriber::registry().with(log).with(spans_layer).try_init();
        Ok(Self { level, spans, traces })
    }

    /// Exports what ended, for a bounded time; the last thing that a process does.
    pub fn flush(&self) {
        if let Some(traces) = &self.traces {
            traces.flush();
        }
    }
}
