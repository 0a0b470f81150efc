//! Clocks that jump, and what must not follow from it.

use super::common::{
    BYTES, Daemon, get,
    relay::{FromServer, Relay, honest},
    send, wait_for,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use syncd::wire::{Reply, Response, ServerMessage};

const HOUR: i64 = 3600;

/// A wall clock that a test can set, for the processes that are started with its options.
struct Shift {
    file: PathBuf,
    options: Vec<String>,
}

impl Shift {
    fn new(directory: &Path, name: &str) -> Self {
        static LIBRARY: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
        let (_, library) = LIBRARY.get_or_init(|| {
            let directory = tempfile::tempdir().unwrap();
            let library = directory.path().join("clock.so");
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/clock.c");
            let built = Command::new("cc")
                .args(["-shared", "-fPIC", "-O1", "-o"])
                .arg(&library)
                .arg(source)
                .status();
            assert!(built.unwrap().success(), "cc cannot build {source}");
            (directory, library)
        });
        let file = directory.join(name);
        std::fs::write(&file, [0; 8]).unwrap();
        let options = vec![
            format!("LD_PRELOAD={}", library.display()),
            format!("CLOCK_SHIFT={}", file.display()),
        ];
        Self { file, options }
    }

    /// Sets the clock to the true time and `seconds`.
    fn set(&self, seconds: i64) {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::File::options().write(true).open(&self.file).unwrap();
        file.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }

    /// `options` and those that give a process this clock.
    fn with<'a>(&'a self, options: &[&'a str]) -> Vec<&'a str> {
        self.options.iter().map(String::as_str).chain(options.iter().copied()).collect()
    }
}

const HEARTBEATS: [&str; 2] = ["--heartbeat-interval", "500ms"];
/// Bounds of a client that make a silent server stale after 2 s.
const STRICT: [&str; 6] = ["--handshake-skew", "1s", "--max-age", "4s", "--ready-max-lag", "2s"];

fn steps(server: &Daemon, direction: &str) -> f64 {
    server.metric(&format!("syncd_server_clock_steps_total{{direction=\"{direction}\"}}"))
}

fn lag(client: &Daemon) -> f64 {
    client.metric("syncd_client_sync_lag_seconds")
}

fn is_ready(client: &Daemon) -> bool {
    get(&format!("{}/readyz", client.metrics)).status == 200
}

fn wait_fresh(client: &Daemon) {
    wait_for("the replica is ready, without lag", || {
        (is_ready(client) && lag(client) == 0.0).then_some(())
    });
}

/// Seconds that the state that a daemon shows was signed ahead of the true time.
fn signed_ahead(daemon: &Daemon) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    daemon.status()["signed_at"].as_f64().unwrap() / 1000.0 - now
}

/// The publisher's clock is an hour ahead for one write, and right again.
#[test]
fn a_glitch_of_the_publishers_clock_passes() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Shift::new(directory.path(), "shift");
    let storage = directory.path().join("server");
    let server = Daemon::server(&storage, &clock.with(&HEARTBEATS));
    let client = server.client(&directory.path().join("client"), &STRICT);
    client.wait_equal(&server);
    wait_fresh(&client);
    clock.set(HOUR);
    assert_eq!(server.put("k", b"wrong time").status, 200);
    // The replica applies it, and knows its signature for what it is.
    client.wait_equal(&server);
    wait_for("the step is counted", || (steps(&server, "ahead") == 1.0).then_some(()));
    wait_for("the signature is seen to be ahead", || {
        (client.metric("syncd_client_signature_ahead_seconds") > 3500.0).then_some(())
    });
    assert!(signed_ahead(&client) > 3500.0);
    wait_for("the replica is not fresh any more", || {
        (!is_ready(&client) && lag(&client) > 2.0).then_some(())
    });
    let reason = String::from_utf8(get(&format!("{}/readyz", client.metrics)).body).unwrap();
    assert!(reason.contains("lag") || reason.contains("future"), "{reason}");
    clock.set(0);
    // Without any write: a heartbeat with the true, lower time takes the place of the future one.
    wait_fresh(&client);
    assert!(signed_ahead(&client) < 1.0 && signed_ahead(&server) < 1.0);
    assert_eq!((steps(&server, "ahead"), steps(&server, "back")), (1.0, 1.0));
    assert!(server.log_text().contains("the clock of this machine stepped"));
    let new = server.client(&directory.path().join("new"), &STRICT);
    new.wait_equal(&server);
    wait_fresh(&new);
}

/// The server is killed while its newest signature lies in the future: no replica takes that for
/// freshness, and all go on once it is back.
#[test]
fn a_dead_publisher_with_a_future_signature_is_not_fresh() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Shift::new(directory.path(), "shift");
    let storage = directory.path().join("server");
    let mut server = Daemon::server(&storage, &clock.with(&HEARTBEATS));
    let replica = directory.path().join("client");
    let mut client = server.client(&replica, &STRICT);
    client.wait_equal(&server);
    wait_fresh(&client);
    clock.set(HOUR);
    assert_eq!(server.put("k", b"wrong time").status, 200);
    client.wait_equal(&server);
    server.kill();
    let stale = |client: &Daemon| {
        wait_for("the replica is not fresh", || {
            (!is_ready(client) && lag(client) > 2.0).then_some(())
        });
        let then = lag(client);
        wait_for("its lag goes on rising", || (lag(client) > then + 1.0).then_some(()));
        assert!(!is_ready(client));
    };
    stale(&client);
    // A restart changes nothing: there is no other signature.
    client.kill();
    let address = server.sync.clone();
    let mut client = server.client(&replica, &STRICT);
    stale(&client);
    client.kill();
    clock.set(0);
    let port = address.rsplit_once(':').unwrap().1.to_string();
    let options = [&HEARTBEATS[..], &["--port", &port]].concat();
    let server = Daemon::server(&storage, &clock.with(&options));
    wait_for("the clock is found behind the newest signature", || {
        (steps(&server, "back") == 1.0).then_some(())
    });
    let client = server.client(&replica, &STRICT);
    wait_fresh(&client);
    let new = server.client(&directory.path().join("new"), &STRICT);
    new.wait_equal(&server);
    wait_fresh(&new);
}

/// Both clocks go back ten minutes: heartbeats come as before, and are fresh.
#[test]
fn heartbeats_come_whatever_the_clocks_do() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Shift::new(directory.path(), "shift");
    let server = Daemon::server(&directory.path().join("server"), &clock.with(&HEARTBEATS));
    let client = server.client(&directory.path().join("client"), &clock.with(&STRICT));
    client.wait_equal(&server);
    wait_fresh(&client);
    for seconds in [-600, 600] {
        clock.set(seconds);
        wait_for("the replica shows a signature of the new time", || {
            ((signed_ahead(&client) - seconds as f64).abs() < 5.0).then_some(())
        });
        wait_fresh(&client);
        wait_for("the replica saw its own clock step", || {
            (client.metric("syncd_client_clock_steps_total{direction=\"back\"}") >= 1.0)
                .then_some(())
        });
        // It stays so: heartbeats go on.
        let (started, mut last) = (Instant::now(), client.status()["signed_at"].clone());
        for _ in 0..3 {
            last = wait_for("the next heartbeat", || {
                Some(client.status()["signed_at"].clone()).filter(|signed| *signed != last)
            });
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        assert!(is_ready(&client));
    }
}

/// The clock jumps two hours ahead, for a moment or for good: no record expires by that, and a
/// request that is sent again is not executed again.
#[test]
fn a_jump_forgets_no_idempotency_key() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Shift::new(directory.path(), "shift");
    let storage = directory.path().join("server");
    let options = ["--db", "keyless"];
    let server = Daemon::server(&storage, &clock.with(&options));
    let append = |server: &Daemon, key: &str| {
        let headers = [BYTES, ("idempotency-key", key)];
        let answer = send("POST", &format!("{}/v1/append", server.api), &headers, b"charge 10");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    let first = append(&server, "order-1");
    // More than two segments of the log.
    for n in 0..300 {
        append(&server, &format!("other-{n}"));
    }
    clock.set(2 * HOUR);
    wait_for("the step is counted", || (steps(&server, "ahead") == 1.0).then_some(()));
    append(&server, "meanwhile");
    let looked_after = |server: &Daemon| {
        wait_for("the log was looked after", || {
            (server.metric("syncd_server_idempotency_entries") >= 302.0).then_some(())
        });
    };
    looked_after(&server);
    assert_eq!(append(&server, "order-1"), first);
    // Nor if the server is started while its clock is wrong.
    server.stop();
    let server = Daemon::server(&storage, &clock.with(&options));
    looked_after(&server);
    assert_eq!(append(&server, "order-1"), first);
    clock.set(0);
    append(&server, "afterwards");
    wait_for("the log was looked after", || {
        (server.metric("syncd_server_idempotency_entries") >= 303.0).then_some(())
    });
    assert_eq!(append(&server, "order-1"), first);
    assert_eq!(server.metric("syncd_server_log_first_sequence"), 0.0);
}

/// A new replica that is shown a signature of the future waits, says why, and goes on over the same
/// connection once it is shown a right one.
#[test]
fn a_new_replica_waits_for_a_signature_of_its_time() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &HEARTBEATS);
    assert_eq!(server.put("k", b"v").status, 200);
    let key = syncd::keys::load_private(&server.storage.join("publisher.key")).unwrap();
    let (relay, address) = Relay::before(&server, directory.path());
    let is_wrong = Arc::new(AtomicBool::new(true));
    let lying = is_wrong.clone();
    let ahead = move |mut signed: syncd::checkpoint::SignedCheckpoint| {
        if lying.load(Ordering::Relaxed) {
            signed.checkpoint.signed_at_ms += HOUR as u64 * 1000;
        }
        signed.checkpoint.sign(&key)
    };
    relay.tamper(move |message| {
        honest(match message {
            FromServer::Reply(Reply::Welcome(mut welcome)) => {
                welcome.checkpoint = ahead(welcome.checkpoint);
                FromServer::Reply(Reply::Welcome(welcome))
            }
            FromServer::Message(ServerMessage::Response {
                id,
                response: Response::Checkpoint(checkpoint),
            }) => {
                let response = Response::Checkpoint(Box::new(ahead(*checkpoint)));
                FromServer::Message(ServerMessage::Response { id, response })
            }
            other => other,
        })
    });
    let options = ["--server", address.as_str()];
    let client = server.client(&directory.path().join("client"), &options);
    wait_for("the replica waits and says why", || {
        let status = client.status();
        let error = status["last_error"].as_str()?;
        (status["state"] == "stalled" && error.contains("in the future")).then_some(())
    });
    assert_eq!(client.metric("syncd_client_stalled{reason=\"clock\"}"), 1.0);
    assert_eq!((client.size(), is_ready(&client)), (0, false));
    let connections = relay.connections();
    is_wrong.store(false, Ordering::Relaxed);
    client.wait_equal(&server);
    wait_fresh(&client);
    assert_eq!(relay.connections(), connections);
}
