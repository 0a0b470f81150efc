//! Traces as a collector sees them: one tree for a write, one for a replica's iteration on both
//! sides, nothing lost at shutdown, and nothing spent on a collector that is not there.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

mod common;

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use common::{Daemon, command, send, wait_for};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message as _;
use std::{
    net::TcpListener,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// A span and the service that made it.
#[derive(Clone, Debug)]
struct Seen {
    service: String,
    span: Span,
}

/// What a collector received, and the headers that came with it.
#[derive(Clone, Default)]
struct Received {
    spans: Arc<Mutex<Vec<Seen>>>,
    headers: Arc<Mutex<Vec<HeaderMap>>>,
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

async fn receive(
    State(received): State<Received>,
    headers: HeaderMap,
    body: Bytes,
) -> &'static str {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    received.headers.lock().unwrap().push(headers);
    for resource in request.resource_spans {
        let attributes = resource.resource.unwrap_or_default().attributes;
        let service = text(&attributes, "service.name").unwrap_or("?").to_string();
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            received.spans.lock().unwrap().push(Seen { service: service.clone(), span });
        }
    }
    ""
}

/// A collector for OTLP over HTTP; lives as long as the test's process.
fn collector() -> (String, Received) {
    let received = Received::default();
    let router = Router::new().route("/v1/traces", post(receive)).with_state(received.clone());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let port = syncd::http::Port {
            name: "api",
            connections_max: syncd::http::CONNECTIONS_MAX,
            place_max: None,
            metrics: Arc::default(),
        };
        let served = syncd::http::serve(listener, router, port, std::future::pending());
        runtime.block_on(served).unwrap();
    });
    (format!("http://{address}"), received)
}

impl Received {
    fn named(&self, name: &str) -> Vec<Seen> {
        let spans = self.spans.lock().unwrap();
        spans.iter().filter(|seen| seen.span.name == name).cloned().collect()
    }

    /// The one span of a name in a trace.
    fn one(&self, trace: &[u8], name: &str) -> Seen {
        let mut found = self.named(name);
        found.retain(|seen| seen.span.trace_id == trace);
        assert_eq!(found.len(), 1, "{name}: {found:#?}");
        found.remove(0)
    }
}

/// The buckets of commit durations, in the format that has exemplars.
fn exemplars(server: &Daemon) -> String {
    let request = ureq::get(format!("{}/metrics", server.metrics));
    let request = request.header("accept", "application/openmetrics-text; version=1.0.0");
    let text = request.call().unwrap().body_mut().read_to_string().unwrap();
    assert!(text.ends_with("# EOF\n"));
    let buckets = text.lines().filter(|line| line.starts_with("syncd_server_commit_duration"));
    buckets.collect::<Vec<_>>().join("\n")
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

#[test]
fn a_write_and_its_way_to_a_replica_are_traced_and_flushed() {
    let (endpoint, received) = collector();
    let endpoint = format!("OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}");
    // Spans leave at shutdown only.
    let delay = "OTEL_BSP_SCHEDULE_DELAY=3600000";
    let header = "OTEL_EXPORTER_OTLP_HEADERS=authorization=secret-word";
    let directory = tempfile::tempdir().unwrap();
    let server =
        Daemon::server(&directory.path().join("server"), &["-i", "100", &endpoint, delay, header]);
    let attributes = "OTEL_RESOURCE_ATTRIBUTES=service.name=a-replica,zone=b";
    let client = server.client(&directory.path().join("client"), &[&endpoint, delay, attributes]);
    client.wait_equal(&server);
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    let headers = [("content-type", "text/plain"), ("traceparent", parent.as_str())];
    let answer = send("PUT", &format!("{}/v1/keys/a", server.api), &headers, b"1");
    assert_eq!(answer.status, 200);
    client.wait_equal(&server);
    let metrics = exemplars(&server);
    let example = format!("# {{trace_id=\"{TRACE}\"}}");
    assert!(metrics.contains(&example), "{metrics}");
    assert!(received.spans.lock().unwrap().is_empty(), "spans leave at shutdown only");
    let (client_log, server_log) = (client.log.clone(), server.log.clone());
    client.stop();
    server.stop();

    // The write: the caller's trace, down to the log.
    let trace = hex::decode(TRACE).unwrap();
    let request = received.one(&trace, "api.request");
    assert_eq!(hex::encode(&request.span.parent_span_id), "b7ad6b7169203331");
    assert_eq!(request.service, "syncd-server");
    assert_eq!(text(&request.span.attributes, "http.route"), Some("/v1/keys/{*key}"));
    let commit = received.one(&trace, "publisher.commit");
    assert_eq!(commit.span.parent_span_id, request.span.span_id);
    let append = received.one(&trace, "publisher.commit.append");
    assert_eq!(append.span.parent_span_id, commit.span.span_id);
    let log = received.one(&trace, "ledger.log.append");
    assert_eq!(log.span.parent_span_id, append.span.span_id);

    // The replica's apply points to the commit.
    let applied = received.named("client.commit.apply");
    let linked = applied.iter().find(|seen| {
        seen.span
            .links
            .iter()
            .any(|link| link.trace_id == trace && link.span_id == commit.span.span_id)
    });
    assert_eq!(linked.unwrap().service, "a-replica");

    // A state sync: one tree over both processes.
    let syncs = received.named("client.state.sync");
    assert_eq!(syncs.len(), 1);
    let trace = &syncs[0].span.trace_id;
    let iteration = received.one(trace, "client.iteration");
    assert!(iteration.span.parent_span_id.is_empty());
    assert_eq!(text(&iteration.span.attributes, "kind"), Some("state_sync"));
    let mut served = received.named("serve.request");
    served.retain(|seen| &seen.span.trace_id == trace);
    assert!(served.len() >= 2, "{served:#?}");
    for seen in &served {
        assert_eq!(seen.service, "syncd-server");
        let asked = received.named("link.request").into_iter();
        let mut parents = asked.filter(|asked| asked.span.span_id == seen.span.parent_span_id);
        assert_eq!(parents.next().unwrap().service, "a-replica");
    }

    // No span names a parent that nobody saw, but the caller's.
    let spans = received.spans.lock().unwrap().clone();
    for seen in &spans {
        let parent = &seen.span.parent_span_id;
        let known = parent.is_empty()
            || hex::encode(parent) == "b7ad6b7169203331"
            || spans.iter().any(|other| &other.span.span_id == parent);
        assert!(known, "an orphan: {seen:#?}");
    }
    // Lines of the log name their trace.
    let log = std::fs::read_to_string(client_log).unwrap();
    let line = log.lines().find(|line| line.contains("\"kind\":\"state_sync\"")).unwrap();
    assert!(line.contains(&format!("\"trace_id\":\"{}\"", hex::encode(trace))), "{line}");
    // The headers of the environment were sent, and appear nowhere else.
    let headers = received.headers.lock().unwrap();
    assert!(
        headers
            .iter()
            .any(|all| all.get("authorization").is_some_and(|value| value == "secret-word"))
    );
    assert!(!std::fs::read_to_string(server_log).unwrap().contains("secret-word"));
}

/// Writes while nobody collects; the warnings that this made.
fn warnings_without(endpoint: &str, protocol: &str) -> usize {
    let directory = tempfile::tempdir().unwrap();
    let endpoint = format!("OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}");
    let protocol = format!("OTEL_EXPORTER_OTLP_PROTOCOL={protocol}");
    let storage = directory.path().join("server");
    let quick = ["OTEL_BSP_SCHEDULE_DELAY=50", "OTEL_EXPORTER_OTLP_TIMEOUT=300"];
    let server = Daemon::server(&storage, &[&endpoint, &protocol, quick[0], quick[1]]);
    let failed = "syncd_trace_spans_total{result=\"failed\"}";
    server.put("first", b"1");
    wait_for("spans were given up", || (server.metric(failed) > 0.0).then_some(()));
    let before = server.metric("process_resident_memory_bytes");
    // Several times what the queue of spans holds.
    server.write_many("key", 1500, 1);
    let seen = server.metric(failed);
    wait_for("more spans were given up", || (server.metric(failed) > seen).then_some(()));
    let grown = server.metric("process_resident_memory_bytes") - before;
    assert!(grown < 64.0 * 1024.0 * 1024.0, "{grown} bytes more");
    let log = server.log.clone();
    let begun = Instant::now();
    server.stop();
    // The drain has its limit and the last spans theirs.
    assert!(begun.elapsed() < Duration::from_secs(20));
    let log = std::fs::read_to_string(log).unwrap();
    log.lines().filter(|line| line.contains("traces cannot be exported")).count()
}

#[test]
fn a_collector_that_is_not_there_costs_one_warning() {
    for protocol in ["grpc", "http/protobuf"] {
        // Nobody listens on port 1.
        assert_eq!(warnings_without("http://127.0.0.1:1", protocol), 1, "{protocol}");
        // Somebody accepts and says nothing.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", silent.local_addr().unwrap());
        assert_eq!(warnings_without(&endpoint, protocol), 1, "{protocol}, silent");
    }
}

#[test]
fn wrong_variables_are_named_before_anything_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "localhost:4317"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
    ] {
        for binary in ["syncd-server", "syncd-client"] {
            let storage = directory.path().join(binary);
            let mut command = command(binary);
            command.env(endpoint.0, endpoint.1).env("OTEL_TRACES_SAMPLER", "traceidratio");
            let output = command.env(name, value).arg("-d").arg(&storage).output().unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(64), "{name}={value}: {error}");
            assert!(error.contains(name) && error.contains(value), "{error}");
            assert!(!storage.exists(), "{name}={value}");
        }
    }
}
