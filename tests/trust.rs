//! Who is trusted: keys and their successors, forks, a server that forgot, the channel.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

mod common;

use common::{
    Daemon, free_port, get, numbered,
    proxy::Proxy,
    relay::{Act, Relay, honest},
    syncctl, wait_for,
};
use std::{path::Path, process::Command};

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}

fn write(server: &Daemon, prefix: &str, count: usize) {
    for n in 0..count {
        assert_eq!(server.put(&format!("{prefix}-{n}"), prefix.as_bytes()).status, 200);
    }
}

/// Restored from a copy taken a thousand commits earlier: the server finds out and stops, nothing
/// happens to the client, and a new epoch gets both going again.
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
    write(&server, "new", 1000);
    client.wait_equal(&server);
    let (size, root) = (client.size(), client.root());
    server.stop();
    std::fs::rename(&storage, directory.path().join("lost")).unwrap();
    copy(&backup, &storage);
    let mut server = Daemon::spawn("syncd-server", &storage, &["--port", &port, "-o", "0"]);
    assert_eq!(server.wait().code(), Some(65), "{}", server.log_tail());
    assert!(server.log_tail().contains("this server forgot"), "{}", server.log_tail());
    assert_eq!((client.size(), client.root()), (size, root.clone()), "the client is unharmed");
    assert_eq!(get(&format!("{}/v1/keys/new-3", client.api)).body, b"new");

    let directory_of = |daemon: &Daemon| daemon.storage.display().to_string();
    let output = syncctl(&["new-epoch", "--storage-dir", &directory_of(&server)]);
    assert!(output.status.success(), "{output:?}");
    let identity = String::from_utf8(output.stdout).unwrap().trim().to_string();
    let server = Daemon::server(&storage, &["--port", &port]);
    write(&server, "again", 3);
    // The client does not take the new identity by itself.
    wait_for("the client refuses the new identity", || {
        (client.status()["state"] == "refusing").then_some(())
    });
    assert_eq!((client.size(), client.root()), (size, root));
    let client_directory = directory_of(&client);
    let adopt = ["adopt-database", &identity, "--storage-dir", &client_directory];
    let output = syncctl(&adopt);
    assert_eq!(output.status.code(), Some(75), "a running client is locked: {output:?}");
    client.stop();
    let output = syncctl(&adopt);
    assert!(output.status.success(), "{output:?}");
    let client = server.client(&directory.path().join("client"), &[]);
    client.wait_equal(&server);
    assert_eq!(get(&format!("{}/v1/keys/again-2", client.api)).body, b"again");
    assert_eq!(get(&format!("{}/v1/keys/new-3", client.api)).status, 404);
}

/// Two servers with one key, at once: whoever meets both finds out. The one that is behind stops
/// by itself when a client shows it what the other one signed.
#[test]
fn two_servers_with_one_key_are_found_out() {
    let directory = tempfile::tempdir().unwrap();
    let (storage, clone) = (directory.path().join("server"), directory.path().join("clone"));
    let server = Daemon::server(&storage, &[]);
    write(&server, "common", 3);
    server.stop();
    copy(&storage, &clone);
    let server = Daemon::server(&storage, &[]);
    let mut clone = Daemon::server(&clone, &[]);
    let proxy = Proxy::start(&server.sync);
    let client = server.client(&directory.path().join("client"), &["--server", &proxy.address]);
    write(&server, "ours", 4);
    client.wait_equal(&server);
    let root = client.root();
    // Ahead of the client, with another history: the client finds out.
    write(&clone, "theirs", 9);
    proxy.switch(&clone.sync);
    wait_for("the client finds out", || {
        (client.metric("syncd_client_equivocations_total") >= 1.0).then_some(())
    });
    assert_eq!(client.root(), root);
    // Back with the honest one it goes on.
    proxy.switch(&server.sync);
    write(&server, "more", 20);
    client.wait_equal(&server);
    // Behind the client: the clone finds out.
    proxy.switch(&clone.sync);
    assert_eq!(clone.wait().code(), Some(65), "{}", clone.log_tail());
    assert_eq!(client.root(), server.root());
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
    wait_for("it is said", || (client.status()["state"] == "refusing").then_some(()));
    // And goes on being said while the server is tried again.
    for _ in 0..40 {
        let status = client.status();
        assert_eq!((&status["state"], &status["root"]), (&"refusing".into(), &root.clone().into()));
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
    assert_eq!(get(&format!("{}/v1/keys/ours-3", client.api)).body, b"ours");
    let evidence = std::fs::read_dir(directory.path().join("client/evidence")).unwrap();
    let path = evidence.map(|entry| entry.unwrap().path()).next().unwrap();
    let evidence: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(evidence["known"]["root"], root);
    assert_eq!(evidence["known"]["publisher"], evidence["offered"]["publisher"]);
    assert!(evidence["response"].as_str().unwrap().len() > 64, "the proof of the break");
    client.stop();
    // Anybody can check it, with the publisher's key alone.
    let trusted = evidence["known"]["publisher"].as_str().unwrap().to_string();
    let path = path.display().to_string();
    let output = syncctl(&["verify-evidence", &path, "--trusted-key", &trusted]);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("does not contain the shorter one") && said.contains(&root), "{said}");
    // Without the response, or with one that was tampered with, it proves nothing.
    let mut lines = Vec::new();
    let response = evidence["response"].as_str().unwrap();
    for at in [1, response.len() / 2, response.len() - 2] {
        let mut wrong = response.to_string();
        let digit = if &wrong[at..=at] == "0" { "1" } else { "0" };
        wrong.replace_range(at..=at, digit);
        lines.push(serde_json::Value::String(wrong));
    }
    lines.push(serde_json::Value::Null);
    for wrong in lines {
        let mut evidence = evidence.clone();
        evidence["response"] = wrong;
        let copy = directory.path().join("wrong.json");
        std::fs::write(&copy, evidence.to_string()).unwrap();
        let copy = copy.display().to_string();
        let output = syncctl(&["verify-evidence", &copy, "--trusted-key", &trusted]);
        assert_eq!(output.status.code(), Some(65), "{output:?}");
    }
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
        (server.metric(name) >= 1.0).then_some(())
    });
    assert_eq!(client.size(), 0);
    assert_eq!(get(&format!("{}/v1/keys/a-0", client.api)).status, 503);
    let key = std::fs::read_to_string(client.storage.join("public/identity.pub")).unwrap();
    std::fs::write(&list, format!("{} # ours\n", key.trim())).unwrap();
    server.signal(rustix::process::Signal::HUP);
    client.wait_equal(&server);
    // Another one is let in without a disturbance of the first; then the first is removed.
    let other = server.spawn_client(&directory.path().join("other"), &[]);
    let key_file = other.storage.join("public/identity.pub");
    let second = wait_for("the second key", || std::fs::read_to_string(&key_file).ok());
    let mut other = other;
    other.wait_listening();
    std::fs::write(&list, format!("{}\n{}\n", key.trim(), second.trim())).unwrap();
    server.signal(rustix::process::Signal::HUP);
    other.wait_equal(&server);
    let reconnects = client.log_text().matches("not connected").count();
    write(&server, "b", 3);
    client.wait_equal(&server);
    assert_eq!(client.log_text().matches("not connected").count(), reconnects);
    std::fs::write(&list, format!("{}\n", second.trim())).unwrap();
    // As in a container, where nothing sends signals.
    let storage = server.storage.display().to_string();
    let output = syncctl(&["reload", "--storage-dir", &storage]);
    assert!(output.status.success(), "{output:?}");
    wait_for("the first is told and disconnected", || {
        client.log_text().contains("no longer authorised").then_some(())
    });
    write(&server, "c", 3);
    other.wait_equal(&server);
    assert_ne!(client.root(), server.root());
    assert_eq!(get(&format!("{}/v1/keys/b-2", client.api)).body, b"b", "its last state stays");
}

/// The publisher's key hands over to another: replicas follow, live and later; the old key counts
/// no more.
#[test]
fn a_rotated_key_is_followed_and_the_old_one_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (storage, thief, port) =
        (directory.path().join("server"), directory.path().join("thief"), free_port());
    let server = Daemon::server(&storage, &["--port", &port]);
    write(&server, "a", 3);
    let first_key = std::fs::read_to_string(storage.join("public/publisher.pub")).unwrap();
    let (relay, address) = Relay::before(&server, directory.path());
    let live_directory = directory.path().join("live");
    let live = server.client_trusting(&live_directory, first_key.trim(), Some(&address));
    let away = server.client_trusting(&directory.path().join("away"), first_key.trim(), None);
    live.wait_equal(&server);
    away.wait_equal(&server);
    away.stop();
    let rotate = |wanted: i32| {
        let output = syncctl(&["rotate-key", "--storage-dir", &storage.display().to_string()]);
        assert_eq!(output.status.code(), Some(wanted), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_string()
    };
    rotate(75);
    server.stop();
    // Whoever has a copy of the storage has the key that is about to be retired.
    copy(&storage, &thief);
    let second_key = rotate(0);
    assert_ne!(second_key, first_key.trim());
    let server = Daemon::server(&storage, &["--port", &port]);
    write(&server, "b", 3);
    live.wait_equal(&server);
    server.stop();
    let third_key = rotate(0);
    let server = Daemon::server(&storage, &["--port", &port]);
    write(&server, "c", 3);
    live.wait_equal(&server);
    // One that was away follows both steps; one that is new needs to trust only one of the keys.
    let away = server.client_trusting(&directory.path().join("away"), first_key.trim(), None);
    away.wait_equal(&server);
    for (name, key) in [("new-2", &second_key), ("new-3", &third_key)] {
        let client = server.client_trusting(&directory.path().join(name), key, None);
        client.wait_equal(&server);
    }
    let published: serde_json::Value = get(&format!("{}/v1/checkpoint", live.api)).json();
    assert_eq!(published["publisher"], third_key.as_str());
    // The thief goes on with the retired key, and does not look at what clients show it.
    let root = live.root();
    let thief = Daemon::server(&thief, &[]);
    write(&thief, "stolen", 20);
    let is_refused = |live: &Daemon| {
        let name = "syncd_client_rejected_total{reason=\"retired_publisher\"}";
        wait_for("the retired key is refused", || (live.try_metric(name)? >= 1.0).then_some(()));
        assert_eq!(live.root(), root);
    };
    relay.tamper(honest);
    relay.switch(thief.sync.parse().unwrap());
    is_refused(&live);
    // Also after a restart, before the replica has met the honest server again.
    live.stop();
    let live = server.client_trusting(&live_directory, first_key.trim(), Some(&address));
    is_refused(&live);
    // A thief that plays by the rules learns from the replica that its time is over.
    let mut thief = thief;
    relay.act(Act::Honest);
    assert_eq!(thief.wait().code(), Some(65), "{}", thief.log_tail());
}

/// A server whose clock is wrong is named as such, with the difference, not as one with a bad key.
#[test]
fn a_clock_difference_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    write(&server, "a", 3);
    let (relay, address) = Relay::before(&server, directory.path());
    relay.act(Act::Ahead(std::time::Duration::from_secs(100)));
    let client = server.client(&directory.path().join("client"), &["--server", &address]);
    let said = wait_for("the difference is named", || {
        let status = client.status();
        let error = status["last_error"].as_str()?.to_string();
        error.contains("clock").then_some(error)
    });
    assert!(said.contains("--handshake-skew"), "{said}");
    let seconds: f64 =
        said.split("clock is ").nth(1).unwrap().split('s').next().unwrap().parse().unwrap();
    assert!((99.0..102.0).contains(&seconds), "{said}");
    assert!(client.metric("syncd_client_reconnects_total{reason=\"clock_skew\"}") >= 1.0);
    // Within what is tolerated it works.
    relay.act(Act::Ahead(std::time::Duration::from_secs(5)));
    client.wait_equal(&server);
}

/// What goes between the two is encrypted; who changes, cuts, delays or replays it changes nothing.
#[test]
fn the_channel_hides_and_protects() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    assert_eq!(server.batch(&numbered("before", 0, 500)).status, 200);
    let proxy = Proxy::start(&server.sync);
    let client = server.client(&directory.path().join("client"), &["--server", &proxy.address]);
    client.wait_equal(&server);
    assert_eq!(server.batch(&numbered("after", 0, 500)).status, 200);
    client.wait_equal(&server);
    let (to_server, to_client) = proxy.recorded();
    assert!(to_server.len() > 500 && to_client.len() > 20_000);
    for plain in [&b"value of"[..], b"before/", b"after/"] {
        for bytes in [&to_server, &to_client] {
            assert!(!bytes.windows(plain.len()).any(|window| window == plain));
        }
    }
    // A flipped bit, early or late, ends the connection it is in.
    for after in [10, 200, 5_000] {
        let before = proxy.flips();
        proxy.flip_after(after);
        proxy.cut();
        for n in 0..5 {
            assert_eq!(server.batch(&numbered("flip", n * 100, 100)).status, 200);
        }
        wait_for("a bit is flipped", || (proxy.flips() > before).then_some(()));
        proxy.flip_after(0);
        proxy.cut();
        client.wait_equal(&server);
    }
    proxy.delay(std::time::Duration::from_millis(50));
    write(&server, "delayed", 3);
    client.wait_equal(&server);
    proxy.delay(std::time::Duration::ZERO);
    proxy.close(true);
    write(&server, "cut", 3);
    proxy.close(false);
    client.wait_equal(&server);
    // The client's first connection again, byte for byte: it is nobody's.
    let name = "syncd_server_rejected_total{reason=\"handshake\"}";
    let before = server.try_metric(name).unwrap_or(0.0);
    let mut replay = std::net::TcpStream::connect(&server.sync).unwrap();
    std::io::Write::write_all(&mut replay, &to_server).unwrap();
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut replay, &mut answer);
    wait_for("the replay is refused", || (server.try_metric(name)? > before).then_some(()));
    assert_eq!(client.metric("syncd_client_equivocations_total"), 0.0);
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

/// A container may have no home: what is given needs no default.
#[test]
fn a_client_that_is_told_everything_needs_no_home() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    write(&server, "a", 1);
    let storage = directory.path().join("client");
    let mut child = common::command("syncd-client")
        .env_clear()
        .args(["--api-port", "0", "--metrics-port", "0", "--server", &server.sync, "-d"])
        .arg(&storage)
        .args(server.trust())
        .spawn()
        .unwrap();
    let file = storage.join("public/endpoints.json");
    wait_for("the client listens", || file.exists().then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
    // Nobody has the directory now.
    let output = syncctl(&["reload", "--storage-dir", &storage.display().to_string()]);
    assert_eq!(output.status.code(), Some(75), "{output:?}");
}
