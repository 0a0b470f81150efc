//! `/metrics`: what the contract names is there from the start, and no peer can make it grow.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

mod common;

use common::{
    Daemon, get,
    peer::{Door, on_runtime},
    send,
};
use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::TcpStream,
};

/// Series of a daemon's `/metrics`, without their values.
fn series(daemon: &Daemon) -> BTreeSet<String> {
    let text = String::from_utf8(get(&format!("{}/metrics", daemon.metrics)).body).unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.rsplit_once(' ').unwrap().0.to_string()).collect()
}

/// Every metric of a server, and what the dashboards use beyond it.
const SERVER: &[&str] = &[
    "syncd_connections_max{port=\"sync\"}",
    "syncd_server_operations_total{source=\"api\"}",
    "syncd_server_operations_total{source=\"generator\"}",
    "syncd_server_commits_total",
    "syncd_server_root_changes_total",
    "syncd_server_size_operations",
    "syncd_server_sequence",
    "syncd_server_sessions",
    "syncd_server_followers",
    "syncd_server_log_bytes",
    "syncd_server_log_first_sequence",
    "syncd_server_commit_duration_seconds_count",
    "syncd_server_request_duration_seconds_count{request=\"operations\"}",
    "syncd_server_requests_total{request=\"operations\",result=\"ok\"}",
    "syncd_server_rejected_total{reason=\"malformed\"}",
    "syncd_server_throttled_total",
    "syncd_server_unread_bytes",
    "syncd_server_sent_bytes_total",
    "syncd_server_queue_requests",
    "syncd_server_queue_bytes",
    "syncd_server_idempotency_entries",
    "syncd_server_clock_steps_total{direction=\"back\"}",
    "syncd_server_clock_steps_total{direction=\"ahead\"}",
    "syncd_server_held_operations",
    "syncd_server_holds_lapsed_total",
];

/// As [`SERVER`], for a client.
const CLIENT: &[&str] = &[
    "syncd_client_size_operations",
    "syncd_client_target_size_operations",
    "syncd_client_sync_lag_operations",
    "syncd_client_sync_lag_seconds",
    "syncd_client_signature_ahead_seconds",
    "syncd_client_clock_steps_total{direction=\"back\"}",
    "syncd_client_iterations_total{kind=\"state_sync\",result=\"ok\"}",
    "syncd_client_iterations_total{kind=\"follow\",result=\"error\"}",
    "syncd_client_root_changes_total",
    "syncd_client_iteration_duration_seconds_count{kind=\"state_sync\"}",
    "syncd_client_commit_to_apply_seconds_count",
    "syncd_client_operations_applied_total",
    "syncd_client_received_bytes_total",
    "syncd_client_resumed_operations_total",
    "syncd_client_rejected_total{reason=\"proof\"}",
    "syncd_client_rejected_total{reason=\"bad_signature\"}",
    "syncd_client_equivocations_total",
    "syncd_client_connected",
    "syncd_client_last_verified_timestamp_seconds",
    "syncd_client_stalled{reason=\"disconnected\"}",
    "syncd_client_stalled{reason=\"clock\"}",
    "syncd_client_state_sync_operations",
    "syncd_client_state_sync_target_operations",
    "syncd_client_state_sync_eta_seconds",
];

/// What both have.
const BOTH: &[&str] = &[
    "syncd_http_connections{port=\"api\"}",
    "syncd_http_connections{port=\"metrics\"}",
    "syncd_http_rejected_total{port=\"api\",reason=\"idle\"}",
    "syncd_http_rejected_total{port=\"metrics\",reason=\"slow_reader\"}",
    "syncd_http_rejected_total{port=\"api\",reason=\"slow_body\"}",
    "syncd_http_rejected_total{port=\"metrics\",reason=\"long\"}",
    "syncd_http_rejected_total{port=\"api\",reason=\"answers\"}",
    "syncd_http_exports_total{result=\"complete\"}",
    "syncd_http_exports_total{result=\"held_too_long\"}",
    "syncd_storage_errors_total{operation=\"commit\"}",
    "syncd_storage_errors_total{operation=\"maintain\"}",
    "syncd_storage_errors_total{operation=\"read\"}",
    "syncd_log_lines_dropped_total",
    "syncd_connections_max{port=\"api\"}",
    "syncd_connections_max{port=\"metrics\"}",
    "syncd_trace_spans_total{result=\"exported\"}",
    "syncd_trace_spans_total{result=\"failed\"}",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_open_fds",
    "process_max_fds",
    "process_threads",
    "process_start_time_seconds",
];

#[test]
fn every_metric_of_the_contract_is_there_with_its_help() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &["-i", "10"]);
    let client = server.client(&directory.path().join("client"), &[]);
    client.wait_equal(&server);
    for (daemon, wanted) in [(&server, SERVER), (&client, CLIENT)] {
        let found = series(daemon);
        for name in wanted.iter().chain(BOTH) {
            assert!(found.contains(*name), "{name} is missing from {found:#?}");
        }
        assert!(found.iter().any(|name| name.starts_with("syncd_build_info{")));
        let text = String::from_utf8(get(&format!("{}/metrics", daemon.metrics)).body).unwrap();
        for line in text.lines().filter(|line| line.starts_with("# TYPE syncd_")) {
            let name = line.split(' ').nth(2).unwrap();
            let help = text.lines().find(|help| help.starts_with(&format!("# HELP {name} ")));
            assert!(help.is_some_and(|help| help.len() > name.len() + 15), "help of {name}");
        }
    }
    assert!(server.metric("process_resident_memory_bytes") > 1e6);
    assert!(server.metric("process_open_fds") > 3.0);
    let before = server.metric("process_cpu_seconds_total");
    server.write_many("key", 50, 100);
    assert!(server.metric("process_cpu_seconds_total") > before);
}

/// A request with a method that no library would send.
fn invent_method(api: &str, method: &str) {
    let address = api.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let head =
        format!("{method} /v1/status HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
}

/// One round of everything that a stranger can choose: names, paths, methods, keys, traces.
fn provoke(server: &Daemon, door: &Door, directory: &std::path::Path, round: usize) {
    for n in 0..20 {
        let word = format!("unheard-{round}-{n}");
        let trace = format!("00-{:032x}-{:016x}-01", round * 100 + n + 1, n + 1);
        let headers = [("content-type", "text/plain"), ("traceparent", trace.as_str())];
        send("PUT", &format!("{}/v1/keys/{word}", server.api), &headers, b"1");
        send("GET", &format!("{}/{word}", server.api), &headers, b"");
        send("GET", &format!("{}/v1/operations/{word}", server.api), &headers, b"");
        invent_method(&server.api, &word.to_uppercase());
        send("GET", &format!("{}/{word}", server.metrics), &headers, b"");
    }
    let door = door.clone();
    on_runtime(&directory.join(format!("peer-{round}")), move |context| async move {
        for seed in 0..5 {
            // A stranger's key, and then bytes that mean nothing.
            let (mut peer, _) = door.greet(&context, (round * 10 + seed) as u64).await.unwrap();
            let nonsense = bytes::Bytes::from_static(b"\xff\xffnonsense");
            peer.outgoing.send(nonsense.into()).await.unwrap();
            // Dropping it would drop what is queued: the server ends it.
            while peer.incoming.recv().await.is_some() {}
        }
    });
}

#[test]
fn no_peer_can_make_the_metrics_grow() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &["-i", "10"]);
    let client = server.client(&directory.path().join("client"), &[]);
    client.wait_equal(&server);
    let door = Door::of(&server);
    provoke(&server, &door, directory.path(), 0);
    common::wait_for("the first round was counted", || {
        (server.metric("syncd_server_rejected_total{reason=\"malformed\"}") >= 5.0).then_some(())
    });
    let before = series(&server);
    for round in 1..6 {
        provoke(&server, &door, directory.path(), round);
    }
    common::wait_for("all rounds were counted", || {
        (server.metric("syncd_server_rejected_total{reason=\"malformed\"}") >= 30.0).then_some(())
    });
    let after = series(&server);
    let new: Vec<_> = after.difference(&before).collect();
    assert!(new.is_empty(), "{new:#?}");
    assert!(after.iter().all(|name| !name.to_lowercase().contains("unheard")));
    // All series of a server, the library's included; docs/LIMITS.md says 2,000.
    assert!(after.len() < 2000, "{}", after.len());
}
