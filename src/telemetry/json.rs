//! A log line as one JSON object: `timestamp`, `level`, `message`, the event's fields, `target`, and
//! inside a span that is traced `trace_id` and `span_id`.

use opentelemetry::{Context, trace::TraceContextExt as _};
use serde::ser::{SerializeMap as _, Serializer as _};
use serde_json::ser::{CompactFormatter, Compound};
use std::{
    fmt::{self, Debug},
    io,
};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime as _, SystemTime},
    },
    registry::LookupSpan,
};

/// Writes events as JSON.
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let line = line(event).map_err(|_| fmt::Error)?;
        writeln!(writer, "{}", String::from_utf8_lossy(&line))
    }
}

fn line(event: &Event<'_>) -> Result<Vec<u8>, serde_json::Error> {
    let mut timestamp = String::new();
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut timestamp));
    let mut line = Vec::with_capacity(256);
    let mut serializer = serde_json::Serializer::new(&mut line);
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("timestamp", &timestamp)?;
    map.serialize_entry("level", event.metadata().level().as_str())?;
    let mut fields = Fields { map: &mut map, result: Ok(()) };
    event.record(&mut fields);
    fields.result?;
    map.serialize_entry("target", event.metadata().target())?;
    let context = Context::current();
    let span = context.span();
    let span = span.span_context();
    if span.is_valid() {
        map.serialize_entry("trace_id", &span.trace_id().to_string())?;
        map.serialize_entry("span_id", &span.span_id().to_string())?;
    }
    map.end()?;
    Ok(line)
}

/// Writes the fields of an event as they come.
struct Fields<'a, 'b, W: io::Write> {
    map: &'a mut Compound<'b, W, CompactFormatter>,
    result: Result<(), serde_json::Error>,
}

impl<W: io::Write> Fields<'_, '_, W> {
    fn entry(&mut self, field: &Field, value: &(impl serde::Serialize + ?Sized)) {
        let name = field.name().strip_prefix("r#").unwrap_or(field.name());
        if self.result.is_ok() {
            self.result = self.map.serialize_entry(name, value);
        }
    }
}

impl<W: io::Write> Visit for Fields<'_, '_, W> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.entry(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.entry(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.entry(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.entry(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.entry(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.entry(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::Json;
    use commonware_utils::sync::Mutex;
    use std::{io, sync::Arc};
    use tracing_subscriber::layer::SubscriberExt as _;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_an_object_with_the_fields_as_they_are() {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let layer =
            tracing_subscriber::fmt::layer().event_format(Json).with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(
                size = 7u64,
                ratio = 0.5,
                ok = true,
                name = "a \"b\"\n",
                "it is \\ done"
            );
        });
        let text = String::from_utf8(buffer.0.lock().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["level"], "INFO");
        assert_eq!(value["message"], "it is \\ done");
        assert_eq!(value["size"], 7);
        assert_eq!(value["ratio"], 0.5);
        assert_eq!(value["ok"], true);
        assert_eq!(value["name"], "a \"b\"\n");
        assert!(value["target"].as_str().unwrap().starts_with("syncd::telemetry"));
        assert!(value["timestamp"].as_str().unwrap().ends_with('Z'));
        assert!(value.get("trace_id").is_none());
    }
}
