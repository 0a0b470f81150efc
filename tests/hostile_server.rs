//! A client and a server that lies to it: whatever it says, the last verified state stays and is
//! served, the right thing is counted, the client does not hammer the server, and an honest server
//! is followed again.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

mod common;

use bytes::Bytes;
use common::{
    Daemon, get, numbered,
    relay::{Act, FromServer, Relay, honest},
    syncctl, wait_for,
};
use commonware_codec::Encode as _;
use commonware_cryptography::ed25519::PrivateKey;
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use syncd::{
    checkpoint::SignedCheckpoint,
    database::types::{Change, Digest},
    wire::{Code, Refused, Reply, Request, Response, ServerMessage},
};

/// How long an attack is watched for retries.
const WINDOW: Duration = Duration::from_secs(2);
/// Connections in that time: pauses grow from 100 ms.
const CONNECTIONS_MAX: u64 = 12;

/// A server, a relay before it, and a client of the relay.
struct Scene {
    directory: tempfile::TempDir,
    server: Daemon,
    relay: Relay,
    address: String,
    client: Daemon,
    key: PrivateKey,
    written: usize,
}

impl Scene {
    /// With a client that has followed the server.
    fn new(options: &[&str]) -> Self {
        let mut scene = Self::without_state(options, Act::Honest);
        scene.write(5);
        scene.client.wait_equal(&scene.server);
        scene
    }

    /// With a client that meets `act` first.
    fn without_state(options: &[&str], act: Act) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let server = Daemon::server(
            &directory.path().join("server"),
            &["-i", "2000", "--heartbeat-interval", "500ms"],
        );
        let key = syncd::keys::load_private(&server.storage.join("publisher.key")).unwrap();
        let (relay, address) = Relay::before(&server, directory.path());
        relay.act(act);
        let mut all = vec!["--server", address.as_str()];
        all.extend(options);
        let client = server.client(&directory.path().join("client"), &all);
        Self { directory, server, relay, address, client, key, written: 0 }
    }

    fn write(&mut self, count: usize) {
        for _ in 0..count {
            let answer = self.server.batch(&numbered("k", self.written, 1));
            assert_eq!(answer.status, 200, "{answer:?}");
            self.written += 1;
        }
    }

    fn rejected(&self, reason: &str) -> f64 {
        let name = format!("syncd_client_rejected_total{{reason=\"{reason}\"}}");
        self.client.try_metric(&name).unwrap_or(0.0)
    }

    /// Sets the relay to `act`, writes, and waits until the client has counted `reason`.
    fn attack(&mut self, act: Act, reason: &str) {
        let (size, root) = (self.client.size(), self.client.root());
        let (before, connections) = (self.rejected(reason), self.relay.connections());
        let started = Instant::now();
        self.relay.act(act);
        self.write(3);
        wait_for(&format!("'{reason}' is counted"), || {
            (self.rejected(reason) > before).then_some(())
        });
        std::thread::sleep(WINDOW.saturating_sub(started.elapsed()));
        let windows = started.elapsed().as_secs_f64() / WINDOW.as_secs_f64();
        let retries = self.relay.connections() - connections;
        assert!(retries as f64 <= CONNECTIONS_MAX as f64 * windows, "{retries} connections");
        self.serves(size, &root);
    }

    /// The last verified state is served.
    fn serves(&self, size: u64, root: &str) {
        let status = self.client.status();
        let served = (status["size"].as_u64(), status["root"].as_str().unwrap_or_default());
        assert_eq!(served, (Some(size), root));
        if size > 0 {
            let answer = get(&format!("{}/v1/keys/k%2F0", self.client.api));
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.headers["syncd-root"], root);
        } else {
            assert_eq!(get(&format!("{}/v1/keys/k%2F0", self.client.api)).status, 503);
        }
    }

    /// The client follows an honest server again.
    fn recovers(&mut self) {
        self.relay.act(Act::Honest);
        self.write(1);
        self.client.wait_equal(&self.server);
        let state = wait_for("the client follows", || {
            let state = self.client.status()["state"].as_str().unwrap().to_string();
            (state == "following").then_some(state)
        });
        assert_eq!(state, "following");
    }

    fn attack_and_recover(&mut self, name: &str, act: Act, reason: &str) {
        eprintln!("attack: {name}");
        self.attack(act, reason);
        self.recovers();
    }
}

fn tamper(change: impl Fn(FromServer) -> Vec<Bytes> + Send + Sync + 'static) -> Act {
    Act::Tamper(Arc::new(change))
}

/// Changes every checkpoint that the server shows.
fn checkpoints(
    change: impl Fn(SignedCheckpoint) -> SignedCheckpoint + Send + Sync + 'static,
) -> Act {
    tamper(move |message| {
        honest(match message {
            FromServer::Reply(Reply::Welcome(mut welcome)) => {
                welcome.checkpoint = change(welcome.checkpoint);
                FromServer::Reply(Reply::Welcome(welcome))
            }
            FromServer::Message(ServerMessage::Response { id, response }) => {
                let response = match response {
                    Response::Checkpoint(checkpoint) => {
                        Response::Checkpoint(Box::new(change(*checkpoint)))
                    }
                    Response::Commit { mut commit, trace } => {
                        commit.checkpoint = change(commit.checkpoint);
                        Response::Commit { commit, trace }
                    }
                    other => other,
                };
                FromServer::Message(ServerMessage::Response { id, response })
            }
            other => other,
        })
    })
}

/// Changes every answer to a request.
fn responses(change: impl Fn(Response) -> Response + Send + Sync + 'static) -> Act {
    tamper(move |message| {
        honest(match message {
            FromServer::Message(ServerMessage::Response { id, response }) => {
                FromServer::Message(ServerMessage::Response { id, response: change(response) })
            }
            other => other,
        })
    })
}

/// Whether an answer holds operations, and not the boundary that proves a history.
fn is_operations(body: &Bytes) -> bool {
    body.first() == Some(&0)
}

/// Flips a bit of the operations and proofs of state sync, `part` of the way through.
fn altered_operations(part: f64) -> Act {
    responses(move |response| match response {
        Response::Operations(body) if is_operations(&body) => {
            let mut body = body.to_vec();
            let at = ((body.len() - 1) as f64 * part) as usize;
            body[at] ^= 0x10;
            Response::Operations(body.into())
        }
        other => other,
    })
}

/// Lies about signed states.
#[test]
fn lies_about_checkpoints_change_nothing() {
    let mut scene = Scene::new(&[]);
    let wrong = <PrivateKey as commonware_cryptography::Signer>::from_seed(666);
    scene.attack_and_recover(
        "another key's signature",
        checkpoints(move |signed| {
            let publisher = signed.publisher.clone();
            SignedCheckpoint { publisher, ..signed.checkpoint.sign(&wrong) }
        }),
        "bad_signature",
    );
    let wrong = <PrivateKey as commonware_cryptography::Signer>::from_seed(666);
    scene.attack_and_recover(
        "another publisher",
        checkpoints(move |signed| signed.checkpoint.sign(&wrong)),
        "untrusted_publisher",
    );
    scene.attack_and_recover(
        "a signature over something else",
        checkpoints(|mut signed| {
            signed.checkpoint.signed_at_ms += 1;
            signed
        }),
        "bad_signature",
    );
    let key = scene.key.clone();
    scene.attack_and_recover(
        "another database",
        checkpoints(move |mut signed| {
            signed.checkpoint.database = Digest([3; 32]);
            signed.checkpoint.sign(&key)
        }),
        "wrong_database",
    );
    let first = Arc::new(Mutex::new(None));
    scene.attack_and_recover(
        "an old commit again and again",
        responses(move |response| match response {
            Response::Commit { commit, trace } => {
                let commit = first.lock().unwrap().get_or_insert(commit).clone();
                Response::Commit { commit, trace }
            }
            other => other,
        }),
        "commit_root",
    );
    assert_eq!(scene.client.metric("syncd_client_equivocations_total"), 0.0);
}

/// Lies about commits, while the client follows.
#[test]
fn altered_commits_change_nothing() {
    let mut scene = Scene::new(&[]);
    scene.attack_and_recover(
        "another value in a commit",
        responses(|response| match response {
            Response::Commit { mut commit, trace } => {
                for change in &mut commit.changes {
                    if let Change::Put { value, .. } = change {
                        *value = b"forged".to_vec();
                    }
                }
                Response::Commit { commit, trace }
            }
            other => other,
        }),
        "commit_root",
    );
    scene.attack_and_recover(
        "every other commit left out",
        tamper(|message| match &message {
            FromServer::Message(ServerMessage::Response {
                response: Response::Commit { commit, .. },
                ..
            }) if commit.sequence() % 2 == 0 => Vec::new(),
            _ => honest(message),
        }),
        "commit_root",
    );
    scene.attack_and_recover(
        "operations where commits were asked for",
        responses(|response| match response {
            Response::Commit { .. } => Response::Operations(Bytes::from_static(b"what?")),
            other => other,
        }),
        "protocol",
    );
    scene.attack_and_recover(
        "more than was asked for",
        tamper(|message| {
            let frames = honest(message);
            frames.iter().cycle().take(6000).cloned().collect()
        }),
        "protocol",
    );
}

/// What is no message at all.
#[test]
fn broken_frames_change_nothing() {
    let mut scene = Scene::new(&[]);
    scene.attack_and_recover(
        "half of every message",
        tamper(|message| {
            honest(message).iter().map(|frame| frame.slice(..frame.len() / 2)).collect()
        }),
        "protocol",
    );
    scene.attack_and_recover(
        "random bytes in the channel",
        tamper(|message| {
            let length = honest(message)[0].len();
            vec![(0..length).map(|n| (n * 97 % 253) as u8).collect::<Vec<u8>>().into()]
        }),
        "protocol",
    );
    // These end below the messages: the connection counts, nothing was said that could be refused.
    for (name, act, reason) in [
        ("a frame beyond the bound", tamper(|_| vec![vec![0; 9 << 20].into()]), "handshake"),
        ("noise instead of a handshake", Act::Noise, "handshake"),
        ("silence instead of a handshake", Act::Mute, "timeout"),
        ("silence after the handshake", Act::MuteAfterHandshake, "timeout"),
    ] {
        eprintln!("attack: {name}");
        let (size, root) = (scene.client.size(), scene.client.root());
        let series = format!("syncd_client_reconnects_total{{reason=\"{reason}\"}}");
        let count = |scene: &Scene| scene.client.try_metric(&series).unwrap_or(0.0);
        let before = count(&scene);
        scene.relay.act(act);
        scene.write(2);
        wait_for(name, || (count(&scene) > before).then_some(()));
        scene.serves(size, &root);
        assert!(scene.client.log_text().contains("not connected"));
        scene.recovers();
    }
}

/// A server that stops talking in the middle is left, and one that shows an old world is seen.
#[test]
fn a_frozen_world_is_noticed() {
    let options = ["--max-age", "3s", "--handshake-skew", "1s", "--ready-max-lag", "2s"];
    let mut scene = Scene::new(&options);
    let ready = |scene: &Scene| get(&format!("{}/readyz", scene.client.metrics)).status == 200;
    wait_for("the client is ready", || ready(&scene).then_some(()));
    let (size, root) = (scene.client.size(), scene.client.root());
    let (welcome, connections) = (Arc::new(Mutex::new(None)), scene.relay.connections());
    // The first greeting for ever, and nothing after it but the answers to pings.
    scene.relay.tamper(move |message| match message {
        FromServer::Reply(reply) => {
            vec![welcome.lock().unwrap().get_or_insert(reply).encode()]
        }
        FromServer::Message(ServerMessage::Pong) => vec![ServerMessage::Pong.encode()],
        FromServer::Message(_) => Vec::new(),
    });
    wait_for("the client comes again", || (scene.relay.connections() > connections).then_some(()));
    scene.write(5);
    wait_for("the client is not ready any more", || (!ready(&scene)).then_some(()));
    let lag = || scene.client.metric("syncd_client_sync_lag_seconds");
    wait_for("the lag rises", || (lag() > 3.0).then_some(()));
    let then = lag();
    wait_for("the lag goes on rising", || (lag() > then + 1.0).then_some(()));
    scene.serves(size, &root);
    scene.recovers();
    wait_for("the client is ready again", || ready(&scene).then_some(()));
    let lag = || scene.client.metric("syncd_client_sync_lag_seconds");
    wait_for("the lag is gone", || (lag() == 0.0).then_some(()));
}

/// The publisher's own key signs two states for one sequence.
#[test]
fn two_states_for_one_size_are_evidence() {
    let mut scene = Scene::new(&[]);
    let key = scene.key.clone();
    let act = checkpoints(move |mut signed| {
        signed.checkpoint.root = Digest([7; 32]);
        signed.checkpoint.operations_root = Digest([7; 32]);
        signed.checkpoint.sign(&key)
    });
    let (size, root) = (scene.client.size(), scene.client.root());
    scene.relay.act(act);
    wait_for("the equivocation is counted", || {
        (scene.client.metric("syncd_client_equivocations_total") >= 1.0).then_some(())
    });
    assert_eq!(scene.client.status()["state"], "refusing");
    assert_eq!(scene.client.metric("syncd_client_stalled{reason=\"equivocation\"}"), 1.0);
    assert!(scene.client.log_text().contains("the publisher signed two histories"));
    scene.serves(size, &root);
    let evidence = std::fs::read_dir(scene.client.storage.join("evidence")).unwrap();
    let path = evidence.map(|entry| entry.unwrap().path()).next().unwrap();
    let path = path.to_str().unwrap();
    let trusted = scene.server.storage.join("public/publisher.pub").display().to_string();
    let output = syncctl(&["verify-evidence", path, "--trusted-key", &trusted]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("two states were signed"));
    // What says nothing against this publisher is no evidence against it.
    let other = scene.server.storage.join("public/identity.pub").display().to_string();
    let output = syncctl(&["verify-evidence", path, "--trusted-key", &other]);
    assert_eq!(output.status.code(), Some(65), "{output:?}");
    let mut damaged: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    damaged["offered"] = damaged["known"].clone();
    let copy = scene.directory.path().join("damaged.json");
    std::fs::write(&copy, damaged.to_string()).unwrap();
    let copy = copy.display().to_string();
    let output = syncctl(&["verify-evidence", &copy, "--trusted-key", &trusted]);
    assert_eq!(output.status.code(), Some(65), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("do not contradict"));
    scene.recovers();
}

/// Lies during a state sync: nothing is kept, and the same directory is used with the truth.
#[test]
fn altered_operations_are_refused() {
    let act = altered_operations(0.5);
    let mut scene = Scene::without_state(&["--batch-size", "200"], act.clone());
    scene.write(3);
    scene.attack(act, "proof");
    assert!(scene.client.log_text().contains("the proof of an answer does not hold"));
    scene.attack(altered_operations(0.0), "proof");
    scene.attack(altered_operations(1.0), "proof");
    let cut = responses(|response| match response {
        Response::Operations(body) if is_operations(&body) => {
            Response::Operations(body.slice(..body.len() / 2))
        }
        other => other,
    });
    scene.attack(cut, "proof");
    // The proof that the newer history contains what was signed before, which comes first.
    let boundary = responses(|response| match response {
        Response::Operations(body) if !is_operations(&body) => {
            let mut body = body.to_vec();
            let middle = body.len() / 2;
            body[middle] ^= 0x10;
            Response::Operations(body.into())
        }
        other => other,
    });
    scene.attack(boundary, "boundary");
    scene.recovers();
    // A restart with the same directory finds the verified state.
    let (size, root) = (scene.client.size(), scene.client.root());
    let Scene { server, client, directory, address, .. } = scene;
    client.stop();
    let client = server.client(&directory.path().join("client"), &["--server", "127.0.0.1:1"]);
    assert_eq!((client.size(), client.root()), (size, root));
    drop(address);
}

/// "Pruned" counts only where the signed range says so: it must not lead a replica to rebuild
/// without a proof of continuity.
#[test]
fn a_false_pruned_is_refused() {
    let mut scene = Scene::new(&[]);
    let act = Act::Answer(Arc::new(|id, request| {
        let refuse = |code| {
            let response = Response::Refused(Refused::new(code, "gone, I swear"));
            Some(vec![ServerMessage::Response { id, response }.encode()])
        };
        match request {
            Request::Follow { .. } => refuse(Code::Pruned),
            Request::Fetch(_) => refuse(Code::Pruned),
            _ => None,
        }
    }));
    scene.attack_and_recover("everything is pruned", act, "boundary");
}
