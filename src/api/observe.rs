//! What every HTTP request leaves behind: a count, a duration, a span.

use super::export::End;
use crate::telemetry::context::{DURATION_BUCKETS, TracedHistogram};
use axum::{
    extract::{MatchedPath, Request, State},
    http::Method,
    middleware::Next,
    response::Response,
};
use commonware_runtime::{Metrics as Registry, telemetry::metrics::Registered};
use opentelemetry::global;
use opentelemetry_http::HeaderExtractor;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use std::{sync::Arc, time::Instant};
use tracing::{Instrument as _, Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// A request and its answer.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RequestLabel {
    /// Template of the path, or `other`: never what a caller wrote.
    pub route: String,
    /// `GET`, `HEAD`, `PUT`, `POST`, `DELETE` or `other`.
    pub method: &'static str,
    /// Status.
    pub code: u16,
}

/// A route.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RouteLabel {
    /// As in [`RequestLabel`].
    pub route: String,
}

/// How an export ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ExportLabel {
    /// `complete`, `abandoned`, `slow_reader`, `held_too_long`, `draining` or `failed`.
    pub result: &'static str,
}

type Durations = Family<RouteLabel, TracedHistogram, fn() -> TracedHistogram>;

/// Metrics of the HTTP API; registered as `syncd_http_*`.
pub struct Metrics {
    /// Requests by route, method and status.
    pub requests: Registered<Family<RequestLabel, Counter>>,
    /// Seconds from a request's head to the head of its answer.
    pub duration: Registered<Durations>,
    /// Exports that ended.
    pub exports: Registered<Family<ExportLabel, Counter>>,
}

impl Metrics {
    /// Registers the metrics under `registry`'s name.
    pub fn new(registry: &impl Registry) -> Self {
        let histogram: fn() -> TracedHistogram = || TracedHistogram::new(DURATION_BUCKETS);
        let metrics = Self {
            requests: registry.register(
                "requests",
                "Requests of the HTTP API by route, method and status",
                Family::default(),
            ),
            duration: registry.register(
                "request_duration_seconds",
                "Seconds from the head of a request to the head of its answer",
                Family::new_with_constructor(histogram),
            ),
            exports: registry.register(
                "exports",
                "Exports that ended, by result; all but complete and abandoned were cut",
                Family::default(),
            ),
        };
        for end in End::ALL {
            let _ = metrics.exports.get_or_create(&ExportLabel { result: end.as_str() });
        }
        metrics
    }

    /// Counts an export that ended.
    pub(super) fn count_export(&self, end: End) {
        self.exports.get_or_create(&ExportLabel { result: end.as_str() }).inc();
    }
}

/// A method that this API has, or `other`: a caller may invent names.
fn known(method: &Method) -> &'static str {
    const KNOWN: [&str; 5] = ["GET", "HEAD", "PUT", "POST", "DELETE"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

/// Counts and times a request, in a span that goes on with the caller's trace.
pub(super) async fn observe(
    State(metrics): State<Arc<Metrics>>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let method = known(request.method());
    let route = matched.as_ref().map_or("other", MatchedPath::as_str).to_string();
    let span = tracing::info_span!(
        "api.request",
        otel.kind = "server",
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        otel.status_code = Empty,
    );
    if !span.is_disabled() {
        let headers = HeaderExtractor(request.headers());
        // Fails only for a span that has begun.
        let _ =
            span.set_parent(global::get_text_map_propagator(|context| context.extract(&headers)));
    }
    async {
        let response = next.run(request).await;
        let code = response.status().as_u16();
        let span = Span::current();
        span.record("http.response.status_code", code);
        if response.status().is_server_error() {
            span.record("otel.status_code", "ERROR");
        }
        let label = RequestLabel { route: route.clone(), method, code };
        metrics.requests.get_or_create(&label).inc();
        let duration = metrics.duration.get_or_create(&RouteLabel { route: route.clone() });
        duration.observe(started.elapsed().as_secs_f64());
        response
    }
    .instrument(span.clone())
    .await
}
