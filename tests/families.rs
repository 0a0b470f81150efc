//! Every family, mode and storage with real processes: what each does, and what it refuses by name.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

mod common;

use common::{BYTES, Daemon, NDJSON, get, send, wait_for};

/// A valid combination.
#[derive(Clone, Copy, Debug)]
struct Case {
    family: &'static str,
    hash: &'static str,
    /// What the replica keeps.
    mode: &'static str,
    /// What the server keeps.
    storage: &'static str,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for hash in ["blake3", "sha256"] {
        for family in ["any", "current", "immutable", "keyless"] {
            cases.push(Case { family, hash, mode: "full", storage: "full" });
        }
        for (family, storage) in
            [("immutable", "full"), ("keyless", "full"), ("keyless", "compact")]
        {
            cases.push(Case { family, hash, mode: "compact", storage });
        }
    }
    cases
}

impl Case {
    fn server(&self, storage: &std::path::Path) -> Daemon {
        let mode = self.storage;
        let options =
            ["--db", self.family, "--hash", self.hash, "--storage", self.storage, "--mode", mode];
        Daemon::server(storage, &options)
    }

    fn client(&self, server: &Daemon, storage: &std::path::Path) -> Daemon {
        server.client(storage, &["--db", self.family, "--mode", self.mode])
    }

    /// Writes commits of ten changes each.
    fn write(&self, server: &Daemon, from: usize, commits: usize) {
        for commit in from..from + commits {
            let lines: String = (0..10)
                .map(|n| match self.family {
                    "keyless" => format!("{{\"value\":\"{commit}/{n}\"}}\n"),
                    // Half of them overwrite, where that is possible.
                    "any" | "current" if n % 2 == 0 => {
                        format!("{{\"key\":\"k{n}\",\"value\":\"{commit}\"}}\n")
                    }
                    _ => format!("{{\"key\":\"{commit}/{n}\",\"value\":\"{commit}\"}}\n"),
                })
                .collect();
            let url = format!("{}/v1/batch", server.api);
            let answer = send("POST", &url, &[NDJSON], lines.as_bytes());
            assert_eq!(answer.status, 200, "{self:?}: {answer:?}");
        }
    }

    /// What reads of a replica answer.
    fn check_reads(&self, client: &Daemon) {
        let read = |path: &str| get(&format!("{}{path}", client.api));
        let path = if self.family == "keyless" { "/v1/entries/1" } else { "/v1/keys/0%2F1" };
        let answer = read(path);
        if self.mode == "compact" {
            for path in [path, "/v1/export", "/v1/operations/1?proof=true"] {
                let answer = read(path);
                let code = answer.json()["code"].as_str().unwrap().to_string();
                assert_eq!((answer.status, code.as_str()), (422, "compact"), "{self:?} {path}");
            }
            return;
        }
        assert_eq!(answer.status, 200, "{self:?}: {answer:?}");
        assert_eq!(answer.headers["syncd-root"], client.root());
        let other = if self.family == "keyless" { "/v1/keys/a" } else { "/v1/entries" };
        let answer = read(other);
        assert_eq!((answer.status, answer.json()["code"].as_str()), (422, Some("unsupported")));
        let lines = String::from_utf8(read("/v1/export").body).unwrap().lines().count();
        assert!(lines > 100, "{self:?}: {lines}");
    }
}

/// State sync, follow, an end in order, a kill of each, and reads: for every combination.
#[test]
fn every_combination_replicates() {
    for case in cases() {
        eprintln!("{case:?}");
        let directory = tempfile::tempdir().unwrap();
        let (server_at, client_at) =
            (directory.path().join("server"), directory.path().join("client"));
        let server = case.server(&server_at);
        case.write(&server, 0, 20);
        let client = case.client(&server, &client_at);
        client.wait_equal(&server);
        case.write(&server, 20, 10);
        client.wait_equal(&server);
        case.check_reads(&client);
        assert_eq!(client.status()["mode"], case.mode);
        client.stop();
        case.write(&server, 30, 10);
        let (size, root) = (server.size(), server.root());
        // Kills: the log brings both back to where they were.
        let mut server = server;
        server.kill();
        let server = case.server(&server_at);
        assert_eq!((server.size(), server.root()), (size, root), "{case:?}");
        let mut client = case.client(&server, &client_at);
        client.wait_equal(&server);
        case.write(&server, 40, 5);
        client.wait_equal(&server);
        client.kill();
        let client = case.client(&server, &client_at);
        case.write(&server, 45, 5);
        client.wait_equal(&server);
        case.check_reads(&client);
    }
}

/// A log of values, page by page.
#[test]
fn a_log_of_values_is_read_by_location() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &["--db", "keyless"]);
    let client = server.client(&directory.path().join("client"), &["--db", "keyless"]);
    let url = format!("{}/v1/append", server.api);
    for n in 0..30 {
        let answer = send("POST", &url, &[BYTES], format!("value {n}").as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    client.wait_equal(&server);
    let (mut from, mut values) = (0, Vec::new());
    loop {
        let page = get(&format!("{}/v1/entries?from={from}&limit=7", client.api)).json();
        let entries = page["entries"].as_array().unwrap();
        if entries.is_empty() {
            break;
        }
        assert!(entries.len() <= 7);
        for entry in entries {
            let location = entry["location"].as_u64().unwrap();
            let value = entry["value"].as_str().unwrap().to_string();
            let one = get(&format!("{}/v1/entries/{location}", client.api));
            assert_eq!((one.status, one.body), (200, value.clone().into_bytes()));
            values.push(value);
        }
        from = page["next"].as_u64().unwrap();
    }
    let expected: Vec<String> = (0..30).map(|n| format!("value {n}")).collect();
    assert_eq!(values, expected);
    assert_eq!(from, client.size());
    for (path, status, code) in [
        ("/v1/entries/0", 404, "not_an_entry"),
        ("/v1/entries/999999", 404, "not_found"),
        ("/v1/entries/x", 400, "malformed"),
        ("/v1/entries?limit=0", 400, "malformed"),
        ("/v1/entries?limit=9999", 400, "malformed"),
    ] {
        let answer = get(&format!("{}{path}", client.api));
        assert_eq!((answer.status, answer.json()["code"].as_str()), (status, Some(code)), "{path}");
    }
    // An export is a batch.
    let export = get(&format!("{}/v1/export", client.api)).body;
    let copy = Daemon::server(&directory.path().join("copy"), &["--db", "keyless"]);
    assert_eq!(copy.batch(&export).status, 200);
    let lines = |daemon: &Daemon| {
        let text = String::from_utf8(get(&format!("{}/v1/export", daemon.api)).body).unwrap();
        let value = |line: &str| {
            let entry: serde_json::Value = serde_json::from_str(line).unwrap();
            entry["value"].as_str().unwrap().to_string()
        };
        text.lines().map(value).collect::<Vec<_>>()
    };
    assert_eq!(lines(&copy), lines(&server));
}

/// What a combination cannot do is said when a replica asks for it, or a writer.
#[test]
fn what_does_not_fit_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let case = Case { family: "keyless", hash: "blake3", mode: "compact", storage: "compact" };
    let server = case.server(&directory.path().join("server"));
    let mut full = server.spawn_client(&directory.path().join("full"), &["--db", "keyless"]);
    assert_eq!(full.wait().code(), Some(65));
    assert!(
        full.log_tail().contains("does not serve replicas of mode 'full'"),
        "{}",
        full.log_tail()
    );
    let at = server.storage.clone();
    server.stop();
    let mut other = Daemon::spawn("syncd-server", &at, &["--db", "keyless", "--port", "0"]);
    assert_eq!(other.wait().code(), Some(65));
    assert!(other.log_tail().contains("is 'compact', but --storage says 'full'"));
    // Conflicts cannot be seen without the keys, so none are written.
    let case = Case { family: "immutable", hash: "blake3", mode: "compact", storage: "compact" };
    let server = case.server(&directory.path().join("blind"));
    let answer = server.put("a", b"1");
    assert_eq!((answer.status, answer.json()["code"].as_str()), (422, Some("unsupported")));
}

/// A replica may be told to keep more, or less: it builds anew and goes on.
#[test]
fn a_replica_changes_its_mode() {
    let directory = tempfile::tempdir().unwrap();
    let case = Case { family: "keyless", hash: "blake3", mode: "compact", storage: "full" };
    let server = case.server(&directory.path().join("server"));
    case.write(&server, 0, 20);
    let at = directory.path().join("client");
    for mode in ["compact", "full", "compact"] {
        let client = Case { mode, ..case }.client(&server, &at);
        case.write(&server, 100, 2);
        client.wait_equal(&server);
        wait_for("the mode is what was asked for", || {
            (client.status()["mode"] == mode).then_some(())
        });
        client.stop();
    }
}

/// Overwriting and pruning: neither side grows without bound, and a replica whose history was
/// pruned is told, builds anew and counts it.
#[test]
fn pruned_history_is_gone_on_both_sides() {
    let directory = tempfile::tempdir().unwrap();
    let keep =
        ["--retain-operations", "1000", "--log-retention", "1s", "--log-retention-bytes", "1MiB"];
    let server = Daemon::server(&directory.path().join("server"), &keep);
    let client = server.client(&directory.path().join("client"), &keep);
    let away = server.client(&directory.path().join("away"), &[]);
    let value = "x".repeat(100);
    let overwrite = |rounds: usize| {
        for round in 0..rounds {
            let lines: String = (0..1000)
                .map(|n| format!("{{\"key\":\"k{n}\",\"value\":\"{round} {value}\"}}\n"))
                .collect();
            assert_eq!(server.batch(lines.as_bytes()).status, 200);
        }
    };
    overwrite(2);
    away.wait_equal(&server);
    away.stop();
    overwrite(400);
    client.wait_equal(&server);
    let bytes = |daemon: &Daemon| {
        let output = std::process::Command::new("du")
            .args(["-sb", &daemon.storage.display().to_string()])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    // 400,000 records of more than 100 bytes were written; a thousand are alive.
    for daemon in [&server, &client] {
        wait_for("the history is dropped", || (bytes(daemon) < 30_000_000).then_some(()));
    }
    let answer = get(&format!("{}/v1/operations/1?proof=true", server.api));
    assert_eq!((answer.status, answer.json()["code"].as_str()), (410, Some("pruned")));
    // Away for longer than anything was kept.
    let away = server.client(&directory.path().join("away"), &[]);
    away.wait_equal(&server);
    assert_eq!(
        away.metric("syncd_client_iterations_total{kind=\"state_sync\",result=\"ok\"}"),
        1.0
    );
    assert!(away.log_text().contains("rebuilding without a proof"), "{}", away.log_tail());
    let mut all = away.export();
    assert_eq!(all.len(), 1000);
    assert!(all.pop_first().unwrap().1.starts_with("399 "));
}
