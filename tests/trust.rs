//! Who is trusted: keys, forks, a server that forgot.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Daemon, get, wait_for};
use std::{net::TcpListener, path::Path, process::Command};

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}

fn write(server: &Daemon, prefix: &str, count: usize) {
    for n in 0..count {
        assert_eq!(server.put(&format!("{prefix}-{n}"), prefix.as_bytes()).status, 200);
    }
}

#[test]
fn a_server_restored_from_an_old_copy_stops() {
    let directory = tempfile::tempdir().unwrap();
    let (storage, backup, port) =
        (directory.path().join("server"), directory.path().join("backup"), free_port());
    let server = Daemon::server(&storage, &["--port", &port]);
    write(&server, "old", 5);
    server.stop();
    copy(&storage, &backup);
    let server = Daemon::server(&storage, &["--port", &port]);
    let client = server.client(&directory.path().join("client"), &[]);
    write(&server, "new", 20);
    client.wait_equal(&server);
    let (size, root) = (client.size(), client.root());
    server.stop();
    std::fs::rename(&storage, directory.path().join("lost")).unwrap();
    copy(&backup, &storage);
    let mut server = Daemon::spawn("syncd-server", &storage, &["--port", &port, "-o", "0"]);
    assert_eq!(server.wait().code(), Some(65), "{}", server.log_tail());
    assert!(server.log_tail().contains("this server forgot"), "{}", server.log_tail());
    assert_eq!((client.size(), client.root()), (size, root), "the client is unharmed");
    assert_eq!(get(&format!("{}/v1/keys/new-3", client.api)).body, b"new");
}

/// Two histories under one key, shown to one client.
fn forked(options: &[&str]) -> (tempfile::TempDir, Daemon, Daemon, String) {
    let directory = tempfile::tempdir().unwrap();
    let (storage, fork, port) =
        (directory.path().join("server"), directory.path().join("fork"), free_port());
    let server = Daemon::server(&storage, &["--port", &port]);
    write(&server, "common", 5);
    server.stop();
    copy(&storage, &fork);
    let server = Daemon::server(&storage, &["--port", &port]);
    write(&server, "ours", 5);
    let client = server.client(&directory.path().join("client"), &[]);
    client.wait_equal(&server);
    let root = client.root();
    client.stop();
    server.stop();
    let server = Daemon::server(&fork, &["--port", &port]);
    write(&server, "theirs", 10);
    let client = server.spawn_client(&directory.path().join("client"), options);
    (directory, server, client, root)
}

#[test]
fn a_forked_history_is_evidence_and_the_last_state_is_served_on() {
    let (directory, _server, mut client, root) = forked(&[]);
    client.wait_listening();
    wait_for("the equivocation is found", || {
        (client.metric("syncd_client_equivocations_total") >= 1.0).then_some(())
    });
    let status = client.status();
    assert_eq!(
        (status["state"].as_str(), status["root"].as_str()),
        (Some("refusing"), Some(root.as_str()))
    );
    assert_eq!(get(&format!("{}/v1/keys/ours-3", client.api)).body, b"ours");
    let evidence = std::fs::read_dir(directory.path().join("client/evidence")).unwrap();
    let path = evidence.map(|entry| entry.unwrap().path()).next().unwrap();
    let evidence: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(evidence["known"]["root"], root);
    assert_eq!(evidence["known"]["publisher"], evidence["offered"]["publisher"]);
    assert!(evidence["response"].as_str().unwrap().len() > 64, "the proof of the break");
    client.stop();
}

#[test]
fn a_forked_history_ends_the_client_if_it_is_told_so() {
    let (_directory, _server, mut client, _) = forked(&["--on-equivocation", "exit"]);
    assert_eq!(client.wait().code(), Some(65), "{}", client.log_tail());
}

#[test]
fn only_authorised_clients_connect() {
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("clients");
    std::fs::write(&list, "# nobody yet\n").unwrap();
    let option = list.display().to_string();
    let server =
        Daemon::server(&directory.path().join("server"), &["--authorized-clients", &option]);
    write(&server, "a", 1);
    let client = server.client(&directory.path().join("client"), &[]);
    wait_for("the client is refused", || {
        let name = "syncd_server_rejected_total{reason=\"unauthorized\"}";
        let text = String::from_utf8(get(&format!("{}/metrics", server.metrics)).body).unwrap();
        text.contains(name).then_some(())
    });
    assert_eq!(client.size(), 0);
    assert_eq!(get(&format!("{}/v1/keys/a-0", client.api)).status, 503);
    let key = std::fs::read_to_string(client.storage.join("public/identity.pub")).unwrap();
    std::fs::write(&list, format!("{} # ours\n", key.trim())).unwrap();
    server.signal(rustix::process::Signal::HUP);
    client.wait_equal(&server);
}

#[test]
fn wrong_keys_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    write(&server, "a", 1);
    let public = server.storage.join("public");
    let file = |name: &str| public.join(name).display().to_string();
    let start = |name: &str, server_key: &str, trusted_key: &str| {
        let options = [
            "--server",
            &server.sync,
            "--server-key",
            &file(server_key),
            "--trusted-key",
            &file(trusted_key),
            "--database",
            &file("database.id"),
        ];
        Daemon::start("syncd-client", &directory.path().join(name), &options)
    };
    let client = start("wrong-server", "publisher.pub", "publisher.pub");
    wait_for("the handshake fails by name", || {
        client.status()["last_error"].as_str()?.contains("--server-key").then_some(())
    });
    assert_eq!(client.size(), 0);
    let client = start("wrong-publisher", "identity.pub", "identity.pub");
    wait_for("the checkpoint is refused by name", || {
        let status = client.status();
        let refused = status["last_error"].as_str()?.contains("is not trusted");
        (refused && status["state"] == "refusing").then_some(())
    });
    assert!(client.metric("syncd_client_rejected_total{reason=\"untrusted_publisher\"}") >= 1.0);
    assert_eq!(get(&format!("{}/v1/keys/a-0", client.api)).status, 503);
}
