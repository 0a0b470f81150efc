//! A server and its replicas as real processes: real records, absences, rebuilding.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

mod common;

use common::{Daemon, command, example, free_port, get, numbered, records, try_get, wait_for};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

fn import(server: &Daemon, file: &str, batch: &str) {
    let output = command("syncctl")
        .args(["import", "--api", &server.api, "--batch", batch])
        .arg(example(file))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn real_records(family: &str, hash: &str, options: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let server =
        Daemon::server(&directory.path().join("server"), &["--db", family, "--hash", hash]);
    let mut client_options = vec!["--db", family];
    client_options.extend(options);
    let client = server.client(&directory.path().join("client"), &client_options);
    import(&server, "debian-packages.ndjson", "1000");
    client.wait_equal(&server);
    let mut expected = records(&std::fs::read(example("debian-packages.ndjson")).unwrap());
    let updates = records(&std::fs::read(example("debian-security-updates.ndjson")).unwrap());
    assert_eq!((expected.len(), updates.len()), (5000, 1000));
    if family == "immutable" {
        // The same keys again: each is refused, and nothing of its batch is written.
        let body = std::fs::read(example("debian-security-updates.ndjson")).unwrap();
        assert_eq!(server.batch(&body).status, 409);
        import_as_new(&server, &updates);
        expected.extend(updates.into_iter().map(|(key, value)| (format!("new/{key}"), value)));
    } else {
        import(&server, "debian-security-updates.ndjson", "20");
        expected.extend(updates);
    }
    client.wait_equal(&server);
    assert_eq!(client.export(), expected, "the replica's records");
    assert_eq!(server.export(), expected, "the server's records");
    client.stop();
    server.stop();
}

/// The updates under other keys, for a family that has no updates.
fn import_as_new(server: &Daemon, updates: &BTreeMap<String, String>) {
    let updates: Vec<_> = updates.iter().collect();
    for lines in updates.chunks(20) {
        let body: String = lines
            .iter()
            .map(|(key, value)| {
                serde_json::json!({"key": format!("new/{key}"), "value": value}).to_string() + "\n"
            })
            .collect();
        assert_eq!(server.batch(body.as_bytes()).status, 200);
    }
}

#[test]
fn real_records_any_blake3_follower() {
    real_records("any", "blake3", &[]);
}

#[test]
fn real_records_any_sha256_poller() {
    real_records("any", "sha256", &["--follow", "poll", "--sync-interval", "100ms"]);
}

#[test]
fn real_records_immutable_blake3_poller() {
    real_records("immutable", "blake3", &["--follow", "poll", "--sync-interval", "100ms"]);
}

#[test]
fn real_records_immutable_sha256_follower() {
    real_records("immutable", "sha256", &[]);
}

#[test]
fn a_stopped_client_fetches_what_it_missed() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    for batch in 0..20 {
        assert_eq!(server.batch(&numbered("old", batch * 1000, 1000)).status, 200);
    }
    let storage = directory.path().join("client");
    let client = server.client(&storage, &[]);
    client.wait_equal(&server);
    let everything = wait_for("the bytes are counted", || {
        Some(client.metric("syncd_client_received_bytes_total"))
            .filter(|bytes| *bytes > 1_000_000.0)
    });
    client.stop();
    for batch in 0..20 {
        assert_eq!(server.batch(&numbered("missed", batch * 1000, 1000)).status, 200);
    }
    let missed: usize = (0..20).map(|batch| numbered("missed", batch * 1000, 1000).len()).sum();
    let client = server.client(&storage, &[]);
    // Reads are answered from the first moment, and all along.
    let mut reads = 0;
    while client.size() < server.size() {
        let answer = get(&format!("{}/v1/keys/old/7", client.api));
        assert_eq!((answer.status, answer.body.as_slice()), (200, b"value of 7".as_slice()));
        reads += 1;
    }
    client.wait_equal(&server);
    wait_for("the metrics are brought up to date", || {
        (client.metric("syncd_client_received_bytes_total") > missed as f64 / 4.0).then_some(())
    });
    let received = client.metric("syncd_client_received_bytes_total");
    assert!(received < missed as f64 * 1.5, "{received} bytes for {missed} missed, {reads} reads");
    assert!(received < everything * 1.5, "{received} bytes, {everything} for a first sync");
    assert_eq!(
        client.metric("syncd_client_iterations_total{kind=\"state_sync\",result=\"ok\"}"),
        0.0
    );
}

#[test]
fn a_client_behind_the_log_rebuilds_while_the_old_state_answers() {
    let directory = tempfile::tempdir().unwrap();
    let options = ["--log-retention", "1s", "--log-retention-bytes", "64KiB"];
    let server = Daemon::server(&directory.path().join("server"), &options);
    server.write_many("old", 5, 100);
    let storage = directory.path().join("client");
    let client = server.client(&storage, &[]);
    client.wait_equal(&server);
    let old_root = client.root();
    client.stop();
    server.write_many("new", 600, 10);
    wait_for("the log is trimmed", || {
        (server.metric("syncd_server_log_first_sequence") > 100.0).then_some(())
    });
    // Slow on purpose, so that the old state is seen serving while the new one is built.
    let client = server.client(&storage, &["-b", "5", "-r", "1"]);
    let mut seen_old = false;
    wait_for("the replica is rebuilt", || {
        let answer = get(&format!("{}/v1/keys/old/3", client.api));
        assert_eq!(answer.status, 200, "{answer:?}");
        seen_old |=
            client.status()["state"] == "state_sync" && answer.headers["syncd-root"] == old_root;
        (client.root() == server.root()).then_some(())
    });
    assert!(seen_old, "the old state answered during the rebuild");
    assert_eq!(
        client.metric("syncd_client_iterations_total{kind=\"state_sync\",result=\"ok\"}"),
        1.0
    );
    assert_eq!(client.export(), server.export());
    // Nothing of the old generation is left: the new one's log is the only one.
    wait_for("the old generation is removed", || {
        let entries = std::fs::read_dir(storage.join("data")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        (names.filter(|name| name.starts_with("commits-")).count() <= 4).then_some(())
    });
}

#[test]
fn a_client_killed_in_its_first_state_sync_resumes_it() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &["-i", "200000"]);
    let storage = directory.path().join("client");
    let mut client = server.client(&storage, &["-b", "50", "-r", "1"]);
    wait_for("nearly half is synced", || {
        (client.metric("syncd_client_state_sync_operations") > 70_000.0).then_some(())
    });
    client.kill();
    let client = server.client(&storage, &[]);
    client.wait_equal(&server);
    let resumed = client.metric("syncd_client_resumed_operations_total");
    assert!(resumed > 30_000.0, "resumed {resumed} operations");
    let lines = |daemon: &Daemon| {
        let body = get(&format!("{}/v1/export", daemon.api)).body;
        let mut lines: Vec<Vec<u8>> =
            body.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        lines.sort_unstable();
        lines
    };
    let (ours, theirs) = (lines(&client), lines(&server));
    assert!(ours.len() > 100_000 && ours == theirs, "{} and {} records", ours.len(), theirs.len());
}

#[test]
fn a_server_may_go_away_for_a_minute_and_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let storage = directory.path().join("server");
    let server = Daemon::server(&storage, &["--port", &port]);
    server.write_many("before", 3, 10);
    // By name: resolved anew at each connection.
    let name = format!("localhost:{port}");
    let options = ["--server", name.as_str(), "--max-age", "20s", "--handshake-skew", "2s"];
    let client = server.client(&directory.path().join("client"), &options);
    client.wait_equal(&server);
    let root = client.root();
    server.stop();
    let gone = Instant::now();
    let mut lag = 0.0;
    while gone.elapsed() < Duration::from_secs(60) {
        let answer = get(&format!("{}/v1/keys/before/3", client.api));
        assert_eq!((answer.status, answer.headers["syncd-root"].as_str()), (200, root.as_str()));
        let now = client.status()["lag_seconds"].as_f64().unwrap();
        assert!(now >= lag, "lag only grows while cut off: {now} after {lag}");
        lag = now;
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(lag > 55.0, "lag {lag}");
    assert_eq!(get(&format!("{}/readyz", client.metrics)).status, 503);
    let server = Daemon::server(&storage, &["--port", &port]);
    server.write_many("after", 3, 10);
    client.wait_equal(&server);
    wait_for("the client is ready again", || {
        (try_get(&format!("{}/readyz", client.metrics))?.status == 200).then_some(())
    });
    assert_eq!(client.status()["lag_seconds"], 0.0);
}

#[test]
fn defaults_find_each_other_in_either_order() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    // Only the ports differ from the defaults, since another test or a user may have those.
    let port = free_port();
    let start = |binary: &str, role: &str, options: &[&str]| {
        command(binary)
            .env("XDG_STATE_HOME", state)
            .args(["--api-port", "0", "--metrics-port", "0"])
            .args(options)
            .stderr(std::fs::File::create(state.join(format!("{role}.log"))).unwrap())
            .spawn()
            .unwrap()
    };
    let mut client = start("syncd-client", "client", &["--server", &format!("127.0.0.1:{port}")]);
    wait_for("the client looks for the keys of a server", || {
        let log = std::fs::read_to_string(state.join("client.log")).ok()?;
        log.contains("waiting for the keys of a server on this machine").then_some(())
    });
    let mut server = start("syncd-server", "server", &["--port", &port]);
    let line = wait_for("the client follows the generator", || {
        let log = std::fs::read_to_string(state.join("client.log")).unwrap();
        let line = log.lines().filter(|line| line.contains("\"sync_iteration\"")).nth(5)?;
        serde_json::from_str::<serde_json::Value>(line).ok()
    });
    for field in ["sync_iteration", "target_size", "database_ops", "root", "duration_ms"] {
        assert!(!line[field].is_null(), "{field} in {line}");
    }
    let log = std::fs::read_to_string(state.join("server.log")).unwrap();
    assert!(log.contains("\"message\":\"generated operations\""), "{log}");
    for child in [&mut client, &mut server] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
