//! Two histories under one key: whatever order and sizes they have, they are recognised; and what
//! an operator does next works.

use super::common::{
    Daemon, get, numbered,
    peer::{Door, on_runtime},
    proxy::Proxy,
    relay::{Relay, honest},
    syncctl, wait_for,
};
use commonware_codec::DecodeExt as _;
use commonware_cryptography::ed25519::PrivateKey;
use rustix::process::Signal;
use std::{path::Path, process::Command};
use syncd::{
    checkpoint::{Checkpoint, SignedCheckpoint},
    wire::Reply,
};

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}

fn commit(server: &Daemon, prefix: &str, commits: usize, changes: usize) {
    for n in 0..commits {
        let answer = server.batch(&numbered(&format!("{prefix}/{n}"), 0, changes));
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

fn checkpoint(daemon: &Daemon) -> SignedCheckpoint {
    let answer = get(&format!("{}/v1/checkpoint", daemon.api)).json();
    SignedCheckpoint::from_hex(answer["encoded"].as_str().unwrap()).unwrap()
}

/// Every file of evidence convicts the publisher, offline; how many there are.
fn check_evidence(client: &Daemon, server: &Daemon) -> usize {
    let trusted = server.storage.join("public/publisher.pub").display().to_string();
    let Ok(files) = std::fs::read_dir(client.storage.join("evidence")) else { return 0 };
    let mut count = 0;
    for file in files {
        let path = file.unwrap().path().display().to_string();
        let output = syncctl(&["verify-evidence", &path, "--trusted-key", &trusted]);
        assert!(output.status.success(), "{output:?}");
        count += 1;
    }
    count
}

/// A copy of the server goes on by many small commits, and is longer in commits and shorter in
/// operations. Then the true server is started alone, and everything goes on by itself.
#[test]
fn a_fork_of_many_small_commits_is_evidence_and_the_true_server_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let (storage, fork) = (directory.path().join("server"), directory.path().join("fork"));
    let server = Daemon::server(&storage, &[]);
    commit(&server, "common", 2, 3);
    server.stop();
    copy(&storage, &fork);
    let server = Daemon::server(&storage, &[]);
    let proxy = Proxy::start(&server.sync);
    let client_storage = directory.path().join("client");
    let options = ["--server", proxy.address.as_str()];
    let client = server.client(&client_storage, &options);
    commit(&server, "ours", 2, 2000);
    client.wait_equal(&server);
    let (size, root) = (client.size(), client.root());
    server.stop();
    let forked = Daemon::server(&fork, &[]);
    commit(&forked, "theirs", 60, 20);
    assert!(forked.size() < size);
    proxy.switch(&forked.sync);
    wait_for("the equivocation is counted", || {
        (client.metric("syncd_client_equivocations_total") >= 1.0).then_some(())
    });
    wait_for("it is said", || (client.status()["state"] == "refusing").then_some(()));
    assert_eq!((client.size(), client.root()), (size, root));
    assert!(check_evidence(&client, &forked) >= 1);
    // As the runbook says: the true one alone. Both restarted, since what is kept counts.
    forked.stop();
    let mut client = client;
    client.kill();
    let server = Daemon::server(&storage, &[]);
    proxy.switch(&server.sync);
    let client = server.client(&client_storage, &options);
    commit(&server, "more", 3, 1);
    client.wait_equal(&server);
    assert_eq!(client.status()["state"], "following");
    assert_eq!(get(&format!("{}/readyz", server.metrics)).status, 200);
}

/// Presents `claim` to the server as a client that holds it; whether it was welcomed.
fn claim(server: &Daemon, directory: &Path, claim: SignedCheckpoint) -> bool {
    let mut door = Door::of(server);
    door.hello.newest = Some(claim);
    let directory = directory.join("peer");
    let reply = on_runtime(&directory, |context| async move {
        door.greet(&context, 77).await.map(|(_, reply)| reply)
    });
    matches!(reply, Some(Reply::Welcome(_)))
}

/// Whoever has a stolen retired key, and may connect, does not stop a server that was rotated.
#[test]
fn a_retired_key_stops_no_server() {
    let directory = tempfile::tempdir().unwrap();
    let storage = directory.path().join("server");
    let server = Daemon::server(&storage, &[]);
    commit(&server, "a", 3, 1);
    let retired = syncd::keys::load_private(&storage.join("publisher.key")).unwrap();
    server.stop();
    let output = syncctl(&["rotate-key", "--storage-dir", &storage.display().to_string()]);
    assert!(output.status.success(), "{output:?}");
    let mut server = Daemon::server(&storage, &[]);
    commit(&server, "b", 3, 1);
    // A state that is none of the server's, so many commits beyond its newest.
    let beyond = |server: &Daemon, commits: u64, key: &PrivateKey| {
        let head = checkpoint(server).checkpoint;
        let (sequence, size) = (head.sequence + commits, head.size + commits + 1);
        Checkpoint { sequence, size, ..head }.sign(key)
    };
    let name = "syncd_server_rejected_total{reason=\"false_claim\"}";
    assert_eq!(server.metric(name), 0.0);
    let other = PrivateKey::decode(bytes::Bytes::from_static(&[7; 32])).unwrap();
    for (count, (commits, key)) in
        [(100, &retired), (0, &retired), (100, &other)].into_iter().enumerate()
    {
        let forged = beyond(&server, commits, key);
        assert!(claim(&server, directory.path(), forged));
        assert_eq!(server.metric(name), count as f64 + 1.0);
        commit(&server, &format!("still {count}"), 1, 1);
    }
    // What the present key signed, and the storage does not have, still stops it.
    let present = syncd::keys::load_private(&storage.join("publisher.key")).unwrap();
    let forged = beyond(&server, 100, &present);
    assert!(!claim(&server, directory.path(), forged));
    assert_eq!(server.wait().code(), Some(65), "{}", server.log_tail());
}

/// A client that was told the second key learns of its retirement, and remembers it after a kill.
#[test]
fn a_learned_retirement_survives_whatever_key_is_configured() {
    let directory = tempfile::tempdir().unwrap();
    let (storage, thief) = (directory.path().join("server"), directory.path().join("thief"));
    let server = Daemon::server(&storage, &[]);
    commit(&server, "a", 3, 1);
    let (relay, address) = Relay::before(&server, directory.path());
    let key = || std::fs::read_to_string(storage.join("public/publisher.pub")).unwrap();
    let first = key();
    let client_storage = directory.path().join("client");
    let client = server.client_trusting(&client_storage, first.trim(), Some(&address));
    client.wait_equal(&server);
    let rotate = |server: Daemon| {
        server.stop();
        let output = syncctl(&["rotate-key", "--storage-dir", &storage.display().to_string()]);
        assert!(output.status.success(), "{output:?}");
        let server = Daemon::server(&storage, &[]);
        relay.switch(server.sync.parse().unwrap());
        commit(&server, "b", 2, 1);
        server
    };
    let server = rotate(server);
    client.wait_equal(&server);
    // The log advises to name the new key: done.
    client.stop();
    let second = key();
    let client = server.client_trusting(&client_storage, second.trim(), Some(&address));
    client.wait_equal(&server);
    server.stop();
    copy(&storage, &thief);
    let server = rotate(Daemon::server(&storage, &[]));
    let mut client = client;
    client.wait_equal(&server);
    let root = client.root();
    client.signal(Signal::KILL);
    client.kill();
    // The thief of the second key goes on with it, and hides what the client knows.
    let thief = Daemon::server(&thief, &[]);
    commit(&thief, "forged", 20, 1);
    relay.tamper(honest);
    relay.switch(thief.sync.parse().unwrap());
    let client = server.client_trusting(&client_storage, second.trim(), Some(&address));
    wait_for("the retired key is refused", || {
        let name = "syncd_client_rejected_total{reason=\"retired_publisher\"}";
        (client.try_metric(name)? >= 1.0).then_some(())
    });
    assert_eq!(client.root(), root);
}

/// What is opened is verified against the configuration before it is served.
#[test]
fn a_stored_state_that_no_trusted_key_signed_is_not_served() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    commit(&server, "a", 3, 1);
    let storage = directory.path().join("client");
    let client = server.client(&storage, &[]);
    client.wait_equal(&server);
    client.stop();
    // The transport key is a valid key, and no publisher's.
    let public = |name: &str| server.storage.join("public").join(name).display().to_string();
    let start = |key: &str| {
        let mut options = server.trust();
        options[3] = public(key);
        options.extend(["--server".into(), "127.0.0.1:1".into()]);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        Daemon::spawn("syncd-client", &storage, &options)
    };
    let mut client = start("identity.pub");
    assert_eq!(client.wait().code(), Some(65));
    let said = client.log_tail();
    assert!(said.contains("is not trusted") && said.contains("--trusted-key"), "{said}");
    let mut client = start("publisher.pub");
    client.wait_listening();
    assert_eq!(client.root(), server.root());
}

/// A replica that has to be built again, since another mode is asked for, is bound by what it
/// verified before.
#[test]
fn a_replica_that_is_built_again_does_not_adopt_a_fork() {
    let directory = tempfile::tempdir().unwrap();
    let (storage, fork) = (directory.path().join("server"), directory.path().join("fork"));
    let append = |server: &Daemon, count: usize, value: &str| {
        for _ in 0..count {
            let url = format!("{}/v1/append", server.api);
            let header = [("content-type", "text/plain")];
            let answer = super::common::send("POST", &url, &header, value.as_bytes());
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    };
    let server = Daemon::server(&storage, &["--db", "keyless"]);
    append(&server, 3, "common");
    server.stop();
    copy(&storage, &fork);
    let server = Daemon::server(&storage, &["--db", "keyless"]);
    append(&server, 5, "ours");
    let client_storage = directory.path().join("client");
    let client = server.client(&client_storage, &["--db", "keyless"]);
    client.wait_equal(&server);
    client.stop();
    server.stop();
    let forked = Daemon::server(&fork, &["--db", "keyless"]);
    append(&forked, 20, "theirs");
    let compact = ["--db", "keyless", "--mode", "compact"];
    let client = forked.client(&client_storage, &compact);
    wait_for("the equivocation is counted", || {
        (client.metric("syncd_client_equivocations_total") >= 1.0).then_some(())
    });
    assert_eq!(client.size(), 0, "it serves nothing of the fork");
    assert_ne!(get(&format!("{}/readyz", client.metrics)).status, 200);
    assert!(check_evidence(&client, &forked) >= 1);
    forked.stop();
    client.stop();
    let server = Daemon::server(&storage, &["--db", "keyless"]);
    append(&server, 3, "more");
    let client = server.client(&client_storage, &compact);
    client.wait_equal(&server);
}
