//! Durability and verification, shown by killing processes.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

mod common;

use common::{BYTES, Daemon, free_port, get, numbered, try_get, try_send, wait_for};
use commonware_runtime::Supervisor as _;
use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use syncd::{
    commit_log::{Commit, CommitLog},
    server::core::GENERATION,
};

/// Rounds of killing.
const ROUNDS: u64 = 20;

/// Writers, a killer, a follower, and somebody who watches what the follower serves.
#[test]
fn a_killed_server_loses_nothing_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let (storage, port) = (directory.path().join("server"), free_port());
    let mut server = Daemon::server(&storage, &["--port", &port]);
    let client = server.client(&directory.path().join("client"), &[]);
    let api = Mutex::new(server.api.clone());
    let acknowledged = Mutex::new(BTreeMap::new());
    let roots = Mutex::new(HashSet::from([server.root()]));
    let served = Mutex::new(HashSet::new());
    let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (api, acknowledged, roots) = (&api, &acknowledged, &roots);
            let (stop, writes) = (&stop, &writes);
            scope.spawn(move || {
                for n in 0.. {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    let (key, value) = (format!("{writer}-{}", n % 50), format!("value {n}"));
                    let base = api.lock().unwrap().clone();
                    let url = format!("{base}/v1/keys/{key}");
                    match try_send("PUT", &url, &[BYTES], value.as_bytes()) {
                        Some(answer) if answer.status == 200 => {
                            let root = answer.json()["root"].as_str().unwrap().to_string();
                            roots.lock().unwrap().insert(root);
                            acknowledged.lock().unwrap().insert(key, n);
                            writes.fetch_add(1, Ordering::Relaxed);
                        }
                        _ => std::thread::sleep(Duration::from_millis(5)),
                    }
                }
            });
        }
        let (watched, watching) = (&client, (&stop, &served));
        scope.spawn(move || {
            while !watching.0.load(Ordering::Acquire) {
                let answer = get(&format!("{}/v1/keys/0-0", watched.api));
                if let Some(root) = answer.headers.get("syncd-root") {
                    watching.1.lock().unwrap().insert(root.clone());
                }
            }
        });
        for round in 0..ROUNDS {
            let before = writes.load(Ordering::Relaxed);
            wait_for("writes are acknowledged", || {
                (writes.load(Ordering::Relaxed) > before + 20).then_some(())
            });
            std::thread::sleep(Duration::from_millis(round * 7 % 60));
            server.kill();
            server = Daemon::server(&storage, &["--port", &port]);
            *api.lock().unwrap() = server.api.clone();
        }
        stop.store(true, Ordering::Release);
    });
    client.wait_equal(&server);
    let found = client.export();
    for (key, n) in acknowledged.into_inner().unwrap() {
        let value = found.get(&key).unwrap_or_else(|| panic!("{key} is lost"));
        let found: u64 = value.strip_prefix("value ").unwrap().parse().unwrap();
        // A later write may have been committed without its answer arriving.
        assert!(found >= n, "{key}: acknowledged {n}, found {found}");
    }
    assert_eq!(found, server.export());
    assert_eq!(client.metric("syncd_client_equivocations_total"), 0.0);
    client.stop();
    server.stop();
    // The server's log leads through every state that it ever signed.
    let signed = signed_roots(&storage);
    let served = served.into_inner().unwrap();
    assert!(served.len() > 20, "the follower served {} states", served.len());
    for root in served.union(&roots.into_inner().unwrap()) {
        assert!(signed.contains(root), "{root} was served or acknowledged, but never signed");
    }
}

/// The roots of all records of a stopped server's log, signatures checked.
fn signed_roots(storage: &Path) -> HashSet<String> {
    let signed = Mutex::new(HashSet::new());
    let found = &signed;
    syncd::daemon::run_on_runtime(storage, |context| async move {
        let visit = |commit: &Commit| {
            assert!(commit.checkpoint.signature_is_valid());
            found.lock().unwrap().insert(commit.state().root.to_string());
        };
        let log = CommitLog::open(context.child("log"), GENERATION, visit).await.unwrap();
        assert!(log.is_some());
        Ok(())
    })
    .unwrap();
    signed.into_inner().unwrap()
}

/// The client is killed while it follows and while it rebuilds; each time it is started again
/// without a server, and must open at a state that the server had signed.
#[test]
fn a_killed_client_opens_at_a_verified_state() {
    let directory = tempfile::tempdir().unwrap();
    let (storage, replica, port) =
        (directory.path().join("server"), directory.path().join("client"), free_port());
    let options =
        ["--port", port.as_str(), "--log-retention", "1s", "--log-retention-bytes", "64KiB"];
    let mut server = Daemon::server(&storage, &options);
    let mut signed = HashSet::from([server.root()]);
    let mut written = 0;
    let mut rebuilds = 0;
    for round in 0..ROUNDS {
        let rebuild = round % 4 == 3;
        let mut client = server.client(&replica, &["-b", "20", "-r", "1"]);
        if round > 0 {
            wait_for("a first state is adopted", || (client.size() > 0).then_some(()));
        }
        if rebuild {
            client.wait_equal(&server);
            client.kill();
            for _ in 0..300 {
                signed.insert(write(&server, &mut written, 5));
            }
            wait_for("the log is trimmed past the replica", || {
                let first = server.metric("syncd_server_log_first_sequence");
                (first > get_sequence(&server) - 250.0).then_some(())
            });
            client = server.client(&replica, &["-b", "5", "-r", "1"]);
            wait_for("the rebuild has begun", || {
                let state = client.status()["state"].as_str()?.to_string();
                (state == "state_sync" || state == "following").then_some(())
            });
            rebuilds += u64::from(client.status()["state"] == "state_sync");
        } else {
            for _ in 0..10 {
                signed.insert(write(&server, &mut written, 3));
            }
            std::thread::sleep(Duration::from_millis(round * 13 % 80));
        }
        client.kill();
        server.kill();
        let client = server.client(&replica, &[]);
        let answer = get(&format!("{}/v1/keys/0", client.api));
        match answer.headers.get("syncd-root") {
            Some(root) => {
                assert!(signed.contains(root), "round {round}: {root} was never signed");
                assert_eq!(client.root(), *root);
            }
            // Killed before its first state was adopted.
            None => assert_eq!((round, answer.status), (0, 503)),
        }
        drop(client);
        server = Daemon::server(&storage, &options);
    }
    assert!(rebuilds > 0, "no round killed a state sync");
    let client = server.client(&replica, &[]);
    client.wait_equal(&server);
    assert_eq!(client.export(), server.export());
}

fn write(server: &Daemon, written: &mut usize, count: usize) -> String {
    let body = numbered("k", *written, count);
    *written += count;
    let answer = server.batch(&body);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["root"].as_str().unwrap().to_string()
}

fn get_sequence(server: &Daemon) -> f64 {
    server.status()["sequence"].as_f64().unwrap()
}

#[test]
fn a_drain_under_load_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let storage = directory.path().join("server");
    let mut server = Daemon::server(&storage, &[]);
    let api = server.api.clone();
    let acknowledged = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let (api, acknowledged) = (&api, &acknowledged);
            scope.spawn(move || {
                for n in 0.. {
                    let key = format!("{writer}-{n}");
                    let url = format!("{api}/v1/keys/{key}");
                    match try_send("PUT", &url, &[BYTES], b"x") {
                        Some(answer) if answer.status == 200 => {
                            acknowledged.lock().unwrap().push(key);
                        }
                        Some(answer) if answer.status == 503 => return,
                        Some(answer) => panic!("{answer:?}"),
                        None => return,
                    }
                }
            });
        }
        wait_for("writes are acknowledged", || {
            (acknowledged.lock().unwrap().len() > 100).then_some(())
        });
        server.signal(rustix::process::Signal::TERM);
        let status = server.wait();
        assert_eq!(status.code(), Some(0), "{}", server.log_tail());
    });
    assert!(try_get(&format!("{api}/v1/status")).is_none());
    let server = Daemon::server(&storage, &[]);
    let log = std::fs::read_to_string(&server.log).unwrap();
    assert!(!log.contains("executing again"), "an orderly stop leaves nothing to do again");
    let found = server.export();
    for key in acknowledged.into_inner().unwrap() {
        assert!(found.contains_key(&key), "{key} is lost");
    }
}

#[test]
fn idempotency_holds_across_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let storage = directory.path().join("server");
    let mut server = Daemon::server(&storage, &[]);
    let headers = [BYTES, ("idempotency-key", "once")];
    let put = |server: &Daemon, value: &[u8]| {
        try_send("PUT", &format!("{}/v1/keys/a", server.api), &headers, value).unwrap()
    };
    let first = put(&server, b"1");
    assert_eq!(first.status, 200);
    assert_eq!(put(&server, b"1").body, first.body);
    assert_eq!(server.put("a", b"2").status, 200);
    server.kill();
    let server = Daemon::server(&storage, &[]);
    assert_eq!(put(&server, b"1").body, first.body, "answered as the first time");
    assert_eq!(get(&format!("{}/v1/keys/a", server.api)).body, b"2", "and not written again");
    let other = put(&server, b"other");
    assert_eq!((other.status, other.json()["code"].as_str()), (422, Some("idempotency_mismatch")));
}
