//! Clients that flood, stall and lie: the server's memory stays bounded, each bound is reached and
//! answered by its name, and honest clients go on.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

mod common;

use bytes::Bytes;
use common::{
    Daemon, NDJSON, free_port, get,
    peer::{Door, on_runtime},
    wait_for,
};
use commonware_codec::{DecodeExt as _, Encode as _};
use commonware_runtime::{Clock as _, Supervisor as _};
use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    num::NonZeroU64,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use syncd::{
    database::Fetch,
    link::Frames,
    serve::limits,
    wire::{ClientMessage, Code, Reply, Request, Response, ServerMessage},
};

/// What docs/LIMITS.md promises of a server's memory, with the database of these tests.
const MEMORY_MAX: u64 = 1024 * 1024 * 1024;

/// One attack at a time: each measures memory and delays.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A server and an honest client that follows it.
fn pair(options: &[&str]) -> (tempfile::TempDir, Daemon, Daemon) {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), options);
    server.write_many("first", 1, 10);
    let client = server.client(&directory.path().join("client"), &[]);
    client.wait_equal(&server);
    (directory, server, client)
}

fn request(id: u64, request: Request) -> Bytes {
    ClientMessage::Request { id, trace: None, request }.encode()
}

/// Sends frames until the server takes no more for a while; how many it took.
async fn flood(
    context: &commonware_runtime::tokio::Context,
    peer: &Frames,
    frames: impl Iterator<Item = Bytes>,
) -> usize {
    let mut sent = 0;
    for frame in frames {
        tokio::select! {
            taken = peer.outgoing.send(frame.into()) => match taken {
                Ok(()) => sent += 1,
                Err(_) => return sent,
            },
            () = context.sleep(Duration::from_millis(200)) => return sent,
        }
    }
    sent
}

/// Resident memory of a process at its highest.
fn memory_peak(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn rejected(server: &Daemon, reason: &str) -> f64 {
    server.try_metric(&format!("syncd_server_rejected_total{{reason=\"{reason}\"}}")).unwrap_or(0.0)
}

/// The delay of commits to the replica that at least half of them stayed under, from the buckets
/// since `before`.
fn median_delay(client: &Daemon, before: &[(f64, f64)]) -> f64 {
    let now = delays(client);
    let since: Vec<(f64, f64)> =
        now.iter().zip(before).map(|((le, n), (_, m))| (*le, n - m)).collect();
    let all = since.last().unwrap().1;
    assert!(all > 0.0, "nothing was followed");
    since.iter().find(|(_, n)| *n * 2.0 >= all).unwrap().0
}

/// Bounds and counts of the buckets.
fn delays(client: &Daemon) -> Vec<(f64, f64)> {
    let text = String::from_utf8(get(&format!("{}/metrics", client.metrics)).body).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("syncd_client_commit_to_apply_seconds_bucket{le=\""))
        .map(|line| {
            let (le, count) = line.split_once("\"} ").unwrap();
            (le.replace("+Inf", "inf").parse().unwrap(), count.trim().parse().unwrap())
        })
        .collect()
}

/// Writes a commit every 50 ms; the median delay to the replica.
fn lag(server: &Daemon, client: &Daemon, prefix: &str) -> f64 {
    let before = delays(client);
    for n in 0..60 {
        assert_eq!(server.put(&format!("{prefix}-{n}"), b"value").status, 200);
        std::thread::sleep(Duration::from_millis(50));
    }
    client.wait_equal(server);
    median_delay(client, &before)
}

/// Fills a database with records of 4 KiB, so that answers are as large as they may be.
fn fill(server: &Daemon) {
    let value = "x".repeat(4000);
    for commit in 0..25 {
        let body: String = (0..400)
            .map(|n| format!("{{\"key\":\"large/{commit}/{n}\",\"value\":\"{value}\"}}\n"))
            .collect();
        let url = format!("{}/v1/batch", server.api);
        assert_eq!(common::send("POST", &url, &[NDJSON], body.as_bytes()).status, 200);
    }
}

/// Peers that ask for 100,000 answers each and read none.
#[test]
fn answers_that_nobody_reads_do_not_fill_the_memory() {
    let _alone = alone();
    let (directory, server, client) = pair(&[]);
    fill(&server);
    client.wait_equal(&server);
    let door = Door::of(&server);
    let size = server.size();
    let storage = directory.path().join("peers");
    let stop = Arc::new(AtomicBool::new(false));
    let (stopping, sent) = (stop.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = sent.clone();
    let peers = std::thread::spawn(move || {
        on_runtime(&storage, |context| async move {
            let mut peers = Vec::new();
            for seed in 0..64 {
                let (peer, reply) = door.greet(&context, seed).await.unwrap();
                assert!(matches!(reply, Reply::Welcome(_)), "{reply:?}");
                let max = NonZeroU64::new(10_000).unwrap();
                let ask = (0..100_000).map(move |id| {
                    let fetch = Fetch::Operations { size, start: id % 5000, max };
                    request(id, Request::Fetch(fetch))
                });
                counted.fetch_add(flood(&context, &peer, ask).await, Ordering::Relaxed);
                peers.push(peer);
            }
            while !stopping.load(Ordering::Relaxed) {
                context.sleep(Duration::from_millis(50)).await;
            }
        });
    });
    let slow = wait_for("slow readers are cut", || {
        let slow = rejected(&server, "slow_reader");
        (slow > 0.0).then_some(slow)
    });
    let delay = lag(&server, &client, "meanwhile");
    let unread = server.metric("syncd_server_unread_bytes");
    assert!(unread <= limits::TOTAL_BYTES_MAX as f64, "{unread}");
    stop.store(true, Ordering::Relaxed);
    peers.join().unwrap();
    let peak = memory_peak(&server);
    eprintln!(
        "{} requests taken, {slow} readers cut, memory {} MiB, median delay {delay} s",
        sent.load(Ordering::Relaxed),
        peak >> 20
    );
    assert!(peak < MEMORY_MAX, "{peak} bytes");
    wait_for("all is given back", || {
        (server.metric("syncd_server_unread_bytes") < 65_536.0).then_some(())
    });
}

/// Followers that ask for everything and read nothing.
#[test]
fn followers_that_do_not_read_do_not_fill_the_memory() {
    let _alone = alone();
    let (directory, server, client) = pair(&[]);
    fill(&server);
    client.wait_equal(&server);
    let door = Door::of(&server);
    let storage = directory.path().join("peers");
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let peers = std::thread::spawn(move || {
        on_runtime(&storage, |context| async move {
            let mut peers = Vec::new();
            for seed in 0..32 {
                let (peer, _) = door.greet(&context, seed).await.unwrap();
                for id in 0..limits::STREAMS_MAX as u64 {
                    let follow = Request::Follow { sequence: 0, credit: u32::MAX };
                    peer.outgoing.send(request(id, follow).into()).await.unwrap();
                }
                peers.push(peer);
            }
            while !stopping.load(Ordering::Relaxed) {
                context.sleep(Duration::from_millis(50)).await;
            }
        });
    });
    wait_for("the followers are there", || {
        (server.metric("syncd_server_followers") >= 50.0).then_some(())
    });
    let delay = lag(&server, &client, "meanwhile");
    stop.store(true, Ordering::Relaxed);
    peers.join().unwrap();
    let peak = memory_peak(&server);
    eprintln!("memory {} MiB, median delay {delay} s", peak >> 20);
    assert!(peak < MEMORY_MAX, "{peak} bytes");
}

/// Bytes that mean nothing: before the handshake, after it, after the greeting.
#[test]
fn nonsense_ends_the_connection_that_it_came_over() {
    let _alone = alone();
    let (directory, server, client) = pair(&[]);
    for n in 0..50u8 {
        let mut stream = TcpStream::connect(&server.sync).unwrap();
        let noise: Vec<u8> = (0..2000u32).map(|i| (i * 7 + u32::from(n)) as u8).collect();
        let _ = stream.write_all(&noise);
    }
    wait_for("noise is refused", || (rejected(&server, "handshake") >= 50.0).then_some(()));
    let door = Door::of(&server);
    on_runtime(&directory.path().join("peers"), |context| async move {
        let versions = syncd::wire::Versions::OURS.encode();
        let nonsense = Bytes::from([&versions[..], &[1, 2, 3]].concat());
        let later = syncd::wire::Versions { oldest: 98, newest: 99 };
        // A greeting of another version, and one that is none, are answered by name.
        for (greeting, code) in [
            (
                syncd::wire::Hello { versions: later, ..door.hello.clone() }.encode(),
                Code::UnsupportedVersion,
            ),
            (nonsense, Code::Malformed),
        ] {
            let mut peer = door.enter(&context, 1).await.unwrap();
            peer.outgoing.send(greeting.into()).await.unwrap();
            let reply = Reply::decode(peer.incoming.recv().await.unwrap()).unwrap();
            assert!(matches!(&reply, Reply::Refused(refused) if refused.code == code), "{reply:?}");
        }
        // Nonsense, or more streams than allowed, after the greeting: the connection ends.
        let many = (0..10).map(|id| request(id, Request::Watch { target: 0 })).collect();
        let long = vec![Bytes::from(vec![0; 100_000])];
        for frames in [vec![Bytes::from_static(b"\xff\xff")], many, long] {
            let (mut peer, _) = door.greet(&context, 2).await.unwrap();
            for frame in frames {
                let _ = peer.outgoing.send(frame.into()).await;
            }
            while peer.incoming.recv().await.is_some() {}
        }
        // Requests for what does not exist are answered by name.
        let (mut peer, _) = door.greet(&context, 3).await.unwrap();
        let max = NonZeroU64::MIN;
        for (id, ask) in [
            Request::Fetch(Fetch::Operations { size: 1 << 40, start: 0, max }),
            Request::Fetch(Fetch::Boundary { size: 1 << 40, start: 5 }),
            Request::Follow { sequence: 1 << 40, credit: 1000 },
            Request::Watch { target: 1 << 40 },
        ]
        .into_iter()
        .enumerate()
        {
            peer.outgoing.send(request(id as u64, ask).into()).await.unwrap();
            let answer = ServerMessage::decode(peer.incoming.recv().await.unwrap()).unwrap();
            let ServerMessage::Response { response: Response::Refused(refused), .. } = answer
            else {
                panic!("{answer:?}");
            };
            assert_eq!(refused.code, Code::Ahead, "{refused}");
        }
    });
    assert!(rejected(&server, "malformed") >= 2.0);
    assert!(rejected(&server, "streams") >= 1.0);
    assert!(rejected(&server, "unsupported_version") >= 1.0);
    server.write_many("after", 3, 1);
    client.wait_equal(&server);
}

/// However much is asked for, an answer has its bounds.
#[test]
fn answers_have_a_size() {
    let _alone = alone();
    let (directory, server, _client) = pair(&[]);
    // Many small operations, then few large ones: either bound is met first.
    for from in 0..15 {
        assert_eq!(server.batch(&common::numbered("small", from * 1000, 1000)).status, 200);
    }
    fill(&server);
    let (door, size) = (Door::of(&server), server.size());
    on_runtime(&directory.path().join("peers"), |context| async move {
        let (mut peer, reply) = door.greet(&context, 1).await.unwrap();
        let Reply::Welcome(welcome) = reply else { panic!("{reply:?}") };
        let mut lengths = Vec::new();
        for (id, start) in [0, 5_000, 14_900, size - 10].into_iter().enumerate() {
            let max = NonZeroU64::new(1_000_000).unwrap();
            let ask = request(id as u64, Request::Fetch(Fetch::Operations { size, start, max }));
            peer.outgoing.send(ask.into()).await.unwrap();
            let answer = ServerMessage::decode(peer.incoming.recv().await.unwrap()).unwrap();
            let ServerMessage::Response { response: Response::Operations(body), .. } = answer
            else {
                panic!("{answer:?}");
            };
            lengths.push(body.len());
        }
        let bound = welcome.bytes_max as usize + 4096;
        assert!(lengths.iter().all(|length| *length <= bound), "{lengths:?}");
        assert!(lengths[0] > 100_000 && lengths[3] < 100_000, "{lengths:?}");
    });
}

/// The bounds on connections, reached: the answer has a name and a time.
#[test]
fn too_many_connections_are_told_so() {
    let _alone = alone();
    let options = ["--max-connections", "6", "--max-connections-per-address", "4"];
    let (directory, server, client) = pair(&options);
    let door = Door::of(&server);
    on_runtime(&directory.path().join("peers"), |context| async move {
        let mut peers = Vec::new();
        for seed in 0..3 {
            let (peer, reply) = door.greet(&context, seed).await.unwrap();
            assert!(matches!(reply, Reply::Welcome(_)), "{reply:?}");
            peers.push(peer);
        }
        // The honest client and three of ours: the address is full.
        let (_, reply) = door.greet(&context, 9).await.unwrap();
        let Reply::Refused(refused) = reply else { panic!("{reply:?}") };
        assert_eq!(refused.code, Code::Busy);
        assert!(refused.message.contains("this address has 4"), "{refused}");
        assert!(!refused.retry_after.is_zero());
    });
    assert!(rejected(&server, "connections") >= 1.0);
    server.write_many("after", 3, 1);
    client.wait_equal(&server);
}

/// Connects from one address of the loopback network.
fn connect_from(source: [u8; 4], to: SocketAddr) -> Option<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from((source, 0))).unwrap();
    connect(&socket, &to).ok()?;
    Some(TcpStream::from(socket))
}

/// Half-open handshakes by the hundred, a thousand idle connections, slow HTTP: the honest
/// client's lag is what it was.
#[test]
fn idle_connections_keep_nobody_out() {
    let _alone = alone();
    let (directory, server, client) = pair(&[]);
    let calm = lag(&server, &client, "calm");
    let address: SocketAddr = server.sync.parse().unwrap();
    let mut open = Vec::new();
    for n in 0..1024u32 {
        open.extend(connect_from([127, 0, 1, (n / 16) as u8], address));
    }
    let api: SocketAddr = server.api.strip_prefix("http://").unwrap().parse().unwrap();
    let mut slow: Vec<TcpStream> =
        (0..300).filter_map(|_| connect_from([127, 0, 2, 1], api)).collect();
    let stop = AtomicBool::new(false);
    let attacked = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for stream in &mut slow {
                    let _ = stream.write_all(b"G");
                }
                // As soon as they are closed, others come in their place.
                for n in 0..50 {
                    open.extend(connect_from([127, 0, 3, n], address));
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let attacked = lag(&server, &client, "attacked");
        // A client that comes now gets in, too.
        let late = server.client(&directory.path().join("late"), &[]);
        late.wait_equal(&server);
        stop.store(true, Ordering::Relaxed);
        attacked
    });
    eprintln!("median delay {calm} s without, {attacked} s with the attack");
    assert!(attacked <= 1.0, "{attacked}");
    let refused = rejected(&server, "handshakes") + rejected(&server, "handshake");
    assert!(refused > 0.0, "half-open handshakes end");
    assert!(memory_peak(&server) < MEMORY_MAX);
}

/// A thousand replicas lose their server and come back at once.
#[test]
fn a_thousand_come_back_at_once() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let options = [
        "--port",
        port.as_str(),
        "--max-connections",
        "2000",
        "--max-connections-per-address",
        "2000",
        "--max-handshakes-per-second",
        "500",
    ];
    let storage = directory.path().join("server");
    let server = Daemon::server(&storage, &options);
    server.write_many("first", 1, 10);
    let client = server.client(&directory.path().join("client"), &[]);
    client.wait_equal(&server);
    let door = Door::of(&server);
    let peers = directory.path().join("peers");
    let (stop, connected) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (stopping, counted) = (stop.clone(), connected.clone());
    let herd = std::thread::spawn(move || {
        on_runtime(&peers, |context| async move {
            use commonware_runtime::Spawner as _;
            for seed in 0..1000 {
                let (door, counted) = (door.clone(), counted.clone());
                context.child("replica").spawn(move |mut context| async move {
                    let mut backoff = syncd::client::connection::Backoff::default();
                    loop {
                        if let Some((mut frames, Reply::Welcome(welcome))) =
                            door.greet(&context, seed).await
                        {
                            counted.fetch_add(1, Ordering::Relaxed);
                            backoff.reset();
                            let sequence = welcome.checkpoint.checkpoint.sequence;
                            let follow = Request::Follow { sequence, credit: u32::MAX };
                            let _ = frames.outgoing.send(request(1, follow).into()).await;
                            while frames.incoming.recv().await.is_some() {}
                            counted.fetch_sub(1, Ordering::Relaxed);
                        }
                        let pause = backoff.next(&mut context);
                        context.sleep(pause).await;
                    }
                });
            }
            while !stopping.load(Ordering::Relaxed) {
                context.sleep(Duration::from_millis(50)).await;
            }
        });
    });
    wait_for("the herd is there", || (connected.load(Ordering::Relaxed) >= 1000).then_some(()));
    let calm = lag(&server, &client, "calm");
    server.stop();
    let server = Daemon::server(&storage, &options);
    let returning = lag(&server, &client, "returning");
    wait_for("the herd is back", || (connected.load(Ordering::Relaxed) >= 1000).then_some(()));
    stop.store(true, Ordering::Relaxed);
    herd.join().unwrap();
    eprintln!(
        "median delay with 1,000 replicas {calm} s, while they return {returning} s; memory {} MiB",
        memory_peak(&server) >> 20
    );
    assert!(returning <= 1.0, "{returning}");
    assert!(memory_peak(&server) < MEMORY_MAX);
}
