//! Credit, budgets and holds between a server and its replicas.

use super::common::{
    Daemon,
    peer::{Door, on_runtime},
    relay::{Act, Hold, Relay},
    wait_for,
};
use bytes::Bytes;
use commonware_codec::{DecodeExt as _, Encode as _};
use commonware_runtime::Clock as _;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use syncd::{
    link::{
        Frames,
        credit::{Balance, CREDIT_BYTES, cost},
    },
    serve::limits::{CONNECTION_BYTES_MAX, TOTAL_BYTES_MAX},
    wire::{ClientMessage, Code, Refused, Request, Response, ServerMessage},
};

/// Writes commits of one record of 1,100 bytes each, over one connection.
fn write_commits(server: &Daemon, commits: usize) {
    let agent = super::common::agent();
    let value = vec![b'x'; 1100];
    for n in 0..commits {
        let url = format!("{}/v1/keys/{n}", server.api);
        let request = agent.put(url).header("content-type", "application/octet-stream");
        assert_eq!(request.send(&value).unwrap().status(), 200);
    }
}

/// A server whose commits cost no disk.
fn quick_server(options: &[&str]) -> (tempfile::TempDir, Daemon) {
    let memory = Path::new("/dev/shm");
    let directory = if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    };
    let server = Daemon::server(&directory.path().join("server"), options);
    (directory, server)
}

fn request(id: u64, request: Request) -> Bytes {
    ClientMessage::Request { id, trace: None, request }.encode()
}

/// The next answer to request `id`.
async fn answer(peer: &mut Frames, id: u64) -> Response {
    loop {
        let frame = peer.incoming.recv().await.expect("the connection is open");
        match ServerMessage::decode(frame).unwrap() {
            ServerMessage::Response { id: found, response } if found == id => return response,
            _ => {}
        }
    }
}

/// More commits than all credit, of a size that framing adds something to: neither an honest
/// client nor a strict bookkeeper finds the server overdrawn.
#[test]
fn thousands_of_commits_are_caught_up_within_the_credit() {
    const COMMITS: usize = 4000;
    let (directory, server) = quick_server(&[]);
    let client = server.client(&directory.path().join("client"), &[]);
    client.wait_equal(&server);
    let mut client = client;
    client.kill();
    write_commits(&server, COMMITS);
    let client = server.client(&directory.path().join("client"), &[]);
    client.wait_equal(&server);
    assert_eq!(client.metric("syncd_client_rejected_total{reason=\"protocol\"}"), 0.0);
    assert_eq!(client.metric("syncd_client_reconnects_total{reason=\"protocol\"}"), 0.0);
    assert_eq!(
        client.metric("syncd_client_iterations_total{kind=\"state_sync\",result=\"ok\"}"),
        0.0
    );

    let door = Door::of(&server);
    on_runtime(&directory.path().join("peer"), move |context| async move {
        let (mut peer, _) = door.greet(&context, 1).await.unwrap();
        let follow = Request::Follow { sequence: 0, credit: CREDIT_BYTES };
        peer.outgoing.send(request(1, follow).into()).await.unwrap();
        let (balance, mut owed, mut commits) = (Balance::new(CREDIT_BYTES), 0, 0);
        while commits < COMMITS {
            // The server waits exactly when there is no credit left, and gets some again then.
            let item = if balance.allows() {
                answer(&mut peer, 1).await
            } else {
                let silence = tokio::select! {
                    _ = answer(&mut peer, 1) => false,
                    () = context.sleep(Duration::from_millis(300)) => true,
                };
                assert!(silence, "more was sent than credit allows");
                balance.grant(owed, i64::MAX);
                let more = ClientMessage::Credit { id: 1, bytes: std::mem::take(&mut owed) };
                peer.outgoing.send(more.encode().into()).await.unwrap();
                continue;
            };
            commits += usize::from(matches!(item, Response::Commit { .. }));
            owed += cost(&item);
            assert!(balance.spend(cost(&item)));
        }
    });
}

/// Operations on a stream of commits, and heartbeats without end: neither is stored.
#[test]
fn what_a_stream_is_not_about_ends_the_connection() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    let (relay, address) = Relay::before(&server, directory.path());
    let client = server.client(&directory.path().join("client"), &["--server", &address]);
    client.wait_equal(&server);
    let checkpoint = {
        let encoded = super::common::get(&format!("{}/v1/checkpoint", server.api)).json();
        let encoded = encoded["encoded"].as_str().unwrap().to_string();
        syncd::checkpoint::SignedCheckpoint::from_hex(&encoded).unwrap()
    };
    let floods: [(Response, usize, &str); 2] = [
        (Response::Operations(Bytes::from(vec![7; 1 << 20])), 3, "unexpected item in a stream"),
        (
            Response::Checkpoint(Box::new(checkpoint)),
            // Each costs at least 1 KiB of 4 MiB of credit; what is worked on meanwhile counts anew.
            20_000,
            "more was sent than credit allows",
        ),
    ];
    for (item, count, reason) in floods {
        relay.act(Act::Answer(Arc::new(move |id, request| {
            let Request::Follow { .. } = request else { return None };
            let frame = ServerMessage::Response { id, response: item.clone() }.encode();
            Some(vec![frame; count])
        })));
        wait_for("the violation is logged", || client.log_text().contains(reason).then_some(()));
    }
    relay.act(Act::Honest);
    assert_eq!(server.put("after", b"1").status, 200);
    client.wait_equal(&server);
}

/// A server that asks for a year of patience is asked again once another one took its place, and
/// within seconds if none does.
#[test]
fn patience_is_bounded_and_ends_with_the_connection() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &["-i", "1000"]);
    let (relay, address) = Relay::before(&server, directory.path());
    let asked = Arc::new(AtomicBool::new(false));
    let refusing = asked.clone();
    relay.act(Act::Answer(Arc::new(move |id, request| {
        let Request::Fetch(_) = request else { return None };
        refusing.store(true, Ordering::Relaxed);
        let year = Duration::from_secs(365 * 24 * 3600);
        let refused = Refused::later(Code::Busy, "not now", year);
        Some(vec![ServerMessage::Response { id, response: Response::Refused(refused) }.encode()])
    })));
    let options = ["--server", address.as_str()];
    let client = server.client(&directory.path().join("client"), &options);
    wait_for("the client was told to wait", || asked.load(Ordering::Relaxed).then_some(()));
    let replaced = std::time::Instant::now();
    relay.act(Act::Honest);
    client.wait_equal(&server);
    let waited = replaced.elapsed();
    assert!(waited < syncd::replicate::RETRY_PAUSE_MAX, "{waited:?}");
}

/// Followers beyond the quota of their keys hold no part of the budget that others need.
#[test]
fn throttled_streams_hold_no_room() {
    // More than the budget would hold, were each to hold room for a commit.
    const PEERS: u64 = 48;
    let options = ["--max-bytes-per-second", "2000"];
    let (directory, server) = quick_server(&options);
    write_commits(&server, 20);
    let door = Door::of(&server);
    let storage = directory.path().join("peers");
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let peers = std::thread::spawn(move || {
        on_runtime(&storage, |context| async move {
            let mut peers = Vec::new();
            for seed in 0..PEERS {
                let (peer, _) = door.greet(&context, seed).await.unwrap();
                let follow = Request::Follow { sequence: 0, credit: CREDIT_BYTES };
                peer.outgoing.send(request(1, follow).into()).await.unwrap();
                peers.push(peer);
            }
            while !stopping.load(Ordering::Relaxed) {
                for peer in &mut peers {
                    while peer.incoming.try_recv().is_ok() {}
                }
                context.sleep(Duration::from_millis(20)).await;
            }
        });
    });
    wait_for("every follower is throttled", || {
        (server.metric("syncd_server_throttled_total") >= PEERS as f64).then_some(())
    });
    // Another key has a quota of its own, and room.
    let door = Door::of(&server);
    let unread = on_runtime(&directory.path().join("other"), move |context| async move {
        let (mut peer, _) = door.greet(&context, 1000).await.unwrap();
        peer.outgoing.send(request(1, Request::Checkpoint).into()).await.unwrap();
        tokio::select! {
            response = answer(&mut peer, 1) => assert!(matches!(response, Response::Checkpoint(_))),
            () = context.sleep(Duration::from_secs(5)) => panic!("no room for an honest peer"),
        }
        server.metric("syncd_server_unread_bytes")
    });
    stop.store(true, Ordering::Relaxed);
    peers.join().unwrap();
    assert!(unread < (TOTAL_BYTES_MAX / 8).max(CONNECTION_BYTES_MAX) as f64, "{unread}");
}

/// What a state sync needs to follow on is kept until the replica follows, whatever it does
/// between: here it is kept from asking for the log until the log was trimmed without it.
#[test]
fn the_log_is_kept_from_the_adopted_state_on() {
    let (directory, server) = quick_server(&["--log-retention", "100ms"]);
    write_commits(&server, 150);
    let (relay, address) = Relay::before(&server, directory.path());
    let hold = Hold::default();
    relay.act(Act::HoldFollow(hold.clone()));
    let client = server.client(&directory.path().join("client"), &["--server", &address]);
    wait_for("the replica has adopted a state and asks to follow", || {
        (hold.held.load(Ordering::Relaxed) > 0).then_some(())
    });
    let metric = |name: &str| server.metric(name);
    let before = wait_for("the first segment is trimmed", || {
        Some(metric("syncd_server_log_first_sequence")).filter(|first| *first > 0.0)
    });
    let bytes = metric("syncd_server_log_bytes");
    write_commits(&server, 300);
    // The next upkeep trims, or counts all that it has kept.
    wait_for("the log was looked after", || {
        let kept = metric("syncd_server_log_bytes") - bytes;
        let first = metric("syncd_server_log_first_sequence");
        (first > before || kept > 200.0 * 1100.0).then_some(())
    });
    hold.released.send_replace(true);
    client.wait_equal(&server);
    let synced = client.metric("syncd_client_iterations_total{kind=\"state_sync\",result=\"ok\"}");
    assert_eq!(synced, 1.0, "{}", client.log_tail());
    // Nothing is held once it follows.
    let first = server.metric("syncd_server_log_first_sequence");
    wait_for("the log is trimmed again", || {
        write_commits(&server, 10);
        (server.metric("syncd_server_log_first_sequence") > first).then_some(())
    });
}

/// What a state sync watches is kept from being pruned, is counted, and is let go when the watch ends.
#[test]
fn held_operations_are_counted_and_let_go() {
    let (directory, server) = quick_server(&["--retain-operations", "0"]);
    server.write_many("key", 1, 5000);
    let door = Door::of(&server);
    let server = Arc::new(server);
    let held = |server: &Daemon| server.metric("syncd_server_held_operations");
    assert_eq!((held(&server), server.metric("syncd_server_holds_lapsed_total")), (0.0, 0.0));
    let writer = server.clone();
    on_runtime(&directory.path().join("peer"), move |context| async move {
        let (mut peer, _) = door.greet(&context, 1).await.unwrap();
        peer.outgoing.send(request(1, Request::Watch { target: 0 }).into()).await.unwrap();
        assert!(matches!(answer(&mut peer, 1).await, Response::Checkpoint(_)));
        // The floor passes what is watched.
        writer.write_many("key", 2, 5000);
        wait_for("operations are held", || (held(&writer) > 5000.0).then_some(()));
        assert!(held(&writer) <= syncd::ledger::HOLD_OPERATIONS_MAX as f64);
    });
    wait_for("nothing is held any more", || (held(&server) == 0.0).then_some(()));
    assert_eq!(server.metric("syncd_server_holds_lapsed_total"), 0.0);
}
