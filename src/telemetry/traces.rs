//! Traces, exported by OTLP where the environment names an endpoint.
//!
//! The standard variables configure all of it: `OTEL_EXPORTER_OTLP_ENDPOINT`, `…_PROTOCOL` (grpc or
//! http/protobuf), `…_HEADERS`, `…_TIMEOUT`, each also as `…_OTLP_TRACES_…`; `OTEL_SERVICE_NAME`,
//! `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`, `OTEL_SDK_DISABLED`.
//!
//! Exporting happens on a thread of its own behind a bounded queue. A collector that cannot be
//! reached costs spans, a count, and one warning; never time or memory of the work that is traced.

use opentelemetry::{global, trace::TracerProvider as _};
use opentelemetry_otlp::SpanExporter as OtlpExporter;
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    propagation::TraceContextPropagator,
    trace::{BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter, Tracer},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use std::{
    env,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// How long the last spans may take at the end of the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// What became of spans.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ResultLabel {
    /// `exported` or `failed`.
    pub result: &'static str,
}

/// `syncd_trace_spans_total`.
pub type SpanCounts = Family<ResultLabel, Counter>;

/// The exporting side of traces.
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: Tracer,
    /// What gRPC runs on; apart from the runtime of the work, which ends first.
    _runtime: Option<tokio::runtime::Runtime>,
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().map(|value| value.trim().to_string()).filter(|value| !value.is_empty())
}

/// A variable of the exporter: the one for traces before the one for everything.
fn exporter_variable(name: &str) -> Option<(String, String)> {
    ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"]
        .iter()
        .map(|prefix| format!("{prefix}{name}"))
        .find_map(|name| variable(&name).map(|value| (name, value)))
}

/// Whether the environment asks for traces.
fn is_wanted() -> bool {
    let is_disabled = variable("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let is_off = variable("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter == "none");
    exporter_variable("ENDPOINT").is_some() && !is_disabled && !is_off
}

/// Whether traces go by gRPC; else by HTTP.
fn is_grpc() -> Result<bool, String> {
    match exporter_variable("PROTOCOL") {
        None => Ok(false),
        Some((_, protocol)) if protocol == "http/protobuf" => Ok(false),
        Some((_, protocol)) if protocol == "grpc" => Ok(true),
        Some((name, other)) => {
            Err(format!("invalid value '{other}' for {name}: allowed are grpc and http/protobuf"))
        }
    }
}

/// What names an endpoint must be: `http://` or `https://` and a host.
fn check_endpoint() -> Result<(), String> {
    let Some((name, endpoint)) = exporter_variable("ENDPOINT") else { return Ok(()) };
    let host = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    match host {
        Some(host) if !host.is_empty() => Ok(()),
        _ => Err(format!(
            "invalid value '{endpoint}' for {name}: allowed is a URL like http://localhost:4318"
        )),
    }
}

/// What the SDK would only warn of, and then do otherwise.
fn check_sampler() -> Result<(), String> {
    let Some(sampler) = variable("OTEL_TRACES_SAMPLER") else { return Ok(()) };
    let is_ratio = sampler.ends_with("traceidratio");
    let known = ["always_on", "always_off", "traceidratio"];
    if !known.contains(&sampler.strip_prefix("parentbased_").unwrap_or(&sampler)) {
        return Err(format!(
            "invalid value '{sampler}' for OTEL_TRACES_SAMPLER: allowed are always_on, always_off, \
             traceidratio, and each with parentbased_ before it"
        ));
    }
    let argument = variable("OTEL_TRACES_SAMPLER_ARG");
    let ratio = argument.as_ref().map_or(Some(1.0), |ratio| ratio.parse().ok());
    if is_ratio && !ratio.is_some_and(|ratio: f64| (0.0..=1.0).contains(&ratio)) {
        return Err(format!(
            "invalid value '{}' for OTEL_TRACES_SAMPLER_ARG: allowed is a number from 0 to 1",
            argument.unwrap_or_default()
        ));
    }
    Ok(())
}

/// Starts exporting if the environment asks for it; `service` is the name unless it has one.
pub fn start(service: &'static str, counts: &SpanCounts) -> Result<Option<Traces>, String> {
    for result in ["exported", "failed"] {
        let _ = counts.get_or_create(&ResultLabel { result });
    }
    if !is_wanted() {
        return Ok(None);
    }
    check_endpoint()?;
    check_sampler()?;
    let runtime = if is_grpc()? {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("traces").enable_all().build();
        Some(runtime.map_err(|error| format!("cannot start the export of traces: {error}"))?)
    } else {
        None
    };
    let exporter = {
        let _entered = runtime.as_ref().map(tokio::runtime::Runtime::enter);
        let builder = OtlpExporter::builder();
        if runtime.is_some() { builder.with_tonic().build() } else { builder.with_http().build() }
    };
    let exporter =
        exporter.map_err(|error| format!("invalid OTEL_EXPORTER_OTLP_* variables: {error}"))?;
    let exporter = Counted { exporter, counts: counts.clone(), is_failing: AtomicBool::new(false) };
    let provider = SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(exporter).build())
        .with_resource(resource(service))
        .build();
    global::set_text_map_propagator(TraceContextPropagator::new());
    let tracer = provider.tracer("syncd");
    Ok(Some(Traces { provider, tracer, _runtime: runtime }))
}

/// Who makes the spans: what the environment says, and what is true anyway.
fn resource(service: &'static str) -> Resource {
    let mut builder = Resource::builder();
    let attributes = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let named = variable("OTEL_SERVICE_NAME").is_some()
        || attributes.split(',').any(|pair| pair.trim_start().starts_with("service.name="));
    if !named {
        builder = builder.with_service_name(service);
    }
    builder
        .with_attribute(opentelemetry::KeyValue::new("service.version", crate::VERSION))
        .with_attribute(opentelemetry::KeyValue::new("process.pid", i64::from(std::process::id())))
        .build()
}

impl Traces {
    /// What makes spans.
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Exports what ended, for a bounded time. No span is exported afterwards.
    pub fn flush(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// An exporter that counts, and warns once for each time that exporting begins to fail.
#[derive(Debug)]
struct Counted {
    exporter: OtlpExporter,
    counts: SpanCounts,
    is_failing: AtomicBool,
}

impl Counted {
    fn note(&self, spans: usize, result: &OTelSdkResult) {
        let word = if result.is_ok() { "exported" } else { "failed" };
        self.counts.get_or_create(&ResultLabel { result: word }).inc_by(spans as u64);
        let was_failing = self.is_failing.swap(result.is_err(), Ordering::Relaxed);
        match result {
            Err(error) if !was_failing => tracing::warn!(
                %error,
                "traces cannot be exported: spans are dropped until they can (said once)"
            ),
            Ok(()) if was_failing => tracing::info!("traces are exported again"),
            _ => {}
        }
    }
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        self.note(spans, &result);
        // Counted and said: the SDK would log it once more for each batch.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        match self.exporter.shutdown_with_timeout(timeout) {
            Err(OTelSdkError::AlreadyShutdown) => Ok(()),
            result => result,
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
