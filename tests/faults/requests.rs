//! HTTP requests whose meaning must not be dropped, and callers that hold on to what they got.

use crate::common::{
    BYTES, Daemon, NDJSON, get, numbered, proxy::Proxy, send, syncctl, try_get, wait_for,
};
use rustix::{
    net::{AddressFamily, SocketType, connect, socket, sockopt},
    process::Signal,
};
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// The `host:port` of a URL.
fn address(url: &str) -> &str {
    url.strip_prefix("http://").unwrap()
}

/// A connection over which `bytes` were sent.
fn open(url: &str, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address(url)).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// Everything that comes over a connection until it is closed.
fn read_all(mut stream: TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn get_head(path: &str) -> Vec<u8> {
    let lines = "host: localhost\r\nconnection: close\r\n\r\n";
    format!("GET {path} HTTP/1.1\r\n{lines}").into_bytes()
}

/// Writes 4,000 values of 5,000 bytes: several pages of an export, more than sockets hold.
fn write_large(server: &Daemon) {
    let value = "x".repeat(5_000);
    for n in (0..4_000).step_by(400) {
        let line = |n| format!("{{\"key\":\"large-{n}\",\"value\":\"{value}\"}}\n");
        let body: String = (n..n + 400).map(line).collect();
        assert_eq!(server.batch(body.as_bytes()).status, 200);
    }
}

/// An export of which nothing is read beyond its first bytes.
fn stalled_export(daemon: &Daemon) -> TcpStream {
    let mut export = open(&daemon.api, &get_head("/v1/export"));
    let mut start = [0; 12];
    export.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    export
}

#[test]
fn waits_exports_and_idle_connections_end_when_draining_begins() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    let client = server.client(&directory.path().join("client"), &[]);
    write_large(&server);
    client.wait_equal(&server);
    for mut daemon in [client, server] {
        let wait = open(&daemon.api, &get_head("/v1/keys/k?min_size=999999&timeout=60s"));
        let (export, idle) = (stalled_export(&daemon), open(&daemon.api, b""));
        let half = open(&daemon.api, b"GET /v1/status HTTP/1.1\r\nhost: ");
        wait_for("all are connected", || {
            (daemon.metric("syncd_http_connections{port=\"api\"}") >= 4.0).then_some(())
        });
        let started = Instant::now();
        daemon.signal(Signal::TERM);
        let answer = read_all(wait);
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("\"draining\"") && answer.contains("retry-after: "), "{answer}");
        let export = read_all(export);
        assert!(!export.ends_with("0\r\n\r\n"), "a cut export does not look complete");
        assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log_tail());
        // Half a second on a machine that has nothing else to do.
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        let log = daemon.log_text();
        assert!(!log.contains("took longer") && log.contains("an export was cut"), "{log}");
        drop((idle, half));
    }
}

#[test]
fn what_a_request_means_is_honoured_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    let key = format!("{}/v1/keys/lock", server.api);
    assert_eq!(server.put("lock", b"owner-1").status, 200);
    let root = server.root();
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03";
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [u8], u16, &'a str);
    let cases: &[Case<'_>] = &[
        ("PUT", "/v1/keys/lock", &[("if-none-match", "*")], b"2", 501, "unsupported_condition"),
        ("PUT", "/v1/keys/lock", &[("if-match", "\"a\"")], b"2", 501, "unsupported_condition"),
        ("DELETE", "/v1/keys/lock", &[("if-match", "\"a\"")], b"", 501, "unsupported_condition"),
        ("POST", "/v1/batch", &[("if-match", "*")], b"", 501, "unsupported_condition"),
        ("PUT", "/v1/keys/lock", &[("content-range", "bytes 0-2/9")], b"2", 400, "content_range"),
        ("PUT", "/v1/keys/lock", &[("content-encoding", "gzip")], gzip, 415, "content_encoding"),
        ("POST", "/v1/batch", &[("content-encoding", "zstd")], b"", 415, "content_encoding"),
        ("PUT", "/v1/keys/lock?ttl=60", &[], b"2", 400, "unknown_parameter"),
        ("DELETE", "/v1/keys/lock?dry_run=true", &[], b"", 400, "unknown_parameter"),
        ("POST", "/v1/batch?atomic=false", &[], b"", 400, "unknown_parameter"),
        ("PUT", "/v1/keys/lock", &[("content-md5", "AAAA")], b"2", 400, "unsupported_header"),
        (
            "POST",
            "/v1/batch",
            &[("content-digest", "sha-256=:AA==:")],
            b"",
            400,
            "unsupported_header",
        ),
        ("GET", "/v1/keys/lock?min_size=999999&timeout=61s", &[], b"", 400, "malformed"),
        ("POST", "/v1/append?at=3", &[], b"", 400, "unknown_parameter"),
        ("GET", "/v1/keys/lock?min-size=999999", &[], b"", 400, "unknown_parameter"),
        ("GET", "/v1/keys/lock?prof=true", &[], b"", 400, "unknown_parameter"),
        ("GET", "/v1/keys/lock?min_size=1&min_size=9", &[], b"", 400, "duplicate_parameter"),
        ("GET", "/v1/export?prefix=a", &[], b"", 400, "unknown_parameter"),
        ("GET", "/v1/entries?form=1", &[], b"", 400, "unknown_parameter"),
        ("GET", "/v1/status?x", &[], b"", 400, "unknown_parameter"),
        ("GET", "/v1/checkpoint?size=1", &[], b"", 400, "unknown_parameter"),
        ("GET", "/v1/operations/1?proof=true&at=2", &[], b"", 400, "unknown_parameter"),
        ("GET", "/v1/keys/lock", &[("if-match", "\"a\"")], b"", 501, "unsupported_condition"),
        ("GET", "/v1/keys/lock", &[("idempotency-key", "a")], b"", 400, "unsupported_header"),
        (
            "GET",
            "/v1/keys/lock",
            &[("x-http-method-override", "DELETE")],
            b"",
            400,
            "unsupported_header",
        ),
        ("DELETE", "/v1/keys/lock", &[], b"{\"if\":\"owner-2\"}", 400, "unexpected_body"),
    ];
    for (method, path, headers, body, status, code) in cases {
        let mut all = headers.to_vec();
        match *path {
            path if path.starts_with("/v1/batch") => all.push(NDJSON),
            _ if matches!(*method, "PUT" | "POST") => all.push(BYTES),
            _ => {}
        }
        let answer = send(method, &format!("{}{path}", server.api), &all, body);
        assert_eq!(answer.status, *status, "{method} {path} {headers:?}: {answer:?}");
        assert_eq!(answer.json()["code"], *code, "{method} {path} {headers:?}");
    }
    // Which host is asked is part of what a request means.
    for (request, status) in [
        ("GET /v1/status HTTP/1.1\r\n", 400),
        ("GET /v1/status HTTP/1.0\r\n", 400),
        ("GET http://evil.example/v1/status HTTP/1.1\r\nhost: localhost\r\n", 421),
        ("GET http://localhost/v1/status HTTP/1.1\r\nhost: evil.example\r\n", 200),
    ] {
        let request = format!("{request}connection: close\r\n\r\n");
        let answer = read_all(open(&server.api, request.as_bytes()));
        assert!(answer.contains(&format!(" {status} ")), "{request}: {answer}");
    }
    // What no library sends.
    for (lines, status) in [
        ("expect: the impossible\r\ncontent-length: 0", 417),
        ("idempotency-key: a\r\nidempotency-key: b\r\ncontent-length: 0", 400),
        ("trailer: if-match\r\ntransfer-encoding: chunked", 400),
        ("transfer-encoding: gzip, chunked", 501),
    ] {
        let head = "PUT /v1/keys/lock HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
        let request = format!("{head}content-type: text/plain\r\n{lines}\r\n\r\n0\r\n\r\n");
        let answer = read_all(open(&server.api, request.as_bytes()));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{lines}: {answer}");
    }
    assert_eq!(server.root(), root, "nothing was written");
    // Less than was asked for is never given; more may be.
    for header in [("range", "bytes=0-1"), ("if-none-match", "*"), ("content-encoding", "identity")]
    {
        let answer = send("GET", &key, &[header], b"");
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"owner-1"[..]), "{header:?}");
    }
    let head = send("HEAD", &format!("{key}?x=1"), &[], b"");
    assert_eq!(head.status, 400, "HEAD is as GET");
    // The metrics port serves the same whatever it is asked with.
    assert_eq!(get(&format!("{}/livez?verbose=1", server.metrics)).status, 200);
}

/// Connects with a small buffer for what comes back, and asks far ahead without reading.
fn ask_and_never_read(url: &str, path: &str) -> TcpStream {
    let target: SocketAddr = address(url).parse().unwrap();
    let raw = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_recv_buffer_size(&raw, 2048).unwrap();
    connect(&raw, &target).unwrap();
    let mut stream = TcpStream::from(raw);
    stream.set_nonblocking(true).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let _ = stream.write(head.repeat(600).as_bytes());
    stream
}

/// Callers that never come to an end, each replaced when it is closed, until this is dropped.
struct Callers {
    ended: Arc<AtomicBool>,
    passes: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Callers {
    /// So many, each from `call`. Every `pause`, `act` goes on with each; it says whether that is still open.
    fn start(
        count: usize,
        pause: Duration,
        call: impl Fn() -> TcpStream + Send + 'static,
        act: impl Fn(&mut TcpStream) -> std::io::Result<bool> + Send + 'static,
    ) -> Self {
        let (ended, passes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (end, passed) = (ended.clone(), passes.clone());
        let thread = std::thread::spawn(move || {
            let mut streams: Vec<_> = (0..count).map(|_| call()).collect();
            while !end.load(Ordering::Relaxed) {
                for stream in &mut streams {
                    let acted = act(stream);
                    let is_open =
                        acted.unwrap_or_else(|error| error.kind() == ErrorKind::WouldBlock);
                    if !is_open {
                        *stream = call();
                    }
                }
                passed.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(pause);
            }
        });
        Self { ended, passes, thread: Some(thread) }
    }

    /// They read a little of everything and ask for more.
    fn sip(url: &str, path: &str, count: usize) -> Self {
        let (url, path) = (url.to_string(), path.to_string());
        let call = move || ask_and_never_read(&url, &path);
        let sip = |stream: &mut TcpStream| Ok(stream.read(&mut [0; 2048])? > 0);
        Self::start(count, Duration::from_millis(50), call, sip)
    }

    /// They send `first`, then `drop` over and over.
    fn drip(url: &str, first: &str, drop: &'static [u8], count: usize) -> Self {
        let (url, first) = (url.to_string(), first.to_string());
        let call = move || {
            let stream = open(&url, first.as_bytes());
            stream.set_nonblocking(true).unwrap();
            stream
        };
        let drip = move |stream: &mut TcpStream| stream.write(drop).map(|_| true);
        Self::start(count, Duration::from_millis(100), call, drip)
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// Heads and bodies that come in drops, fast enough to count as moving: the slowest makes room.
#[test]
fn what_comes_in_drops_keeps_nobody_out() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    let places = syncd::http::CONNECTIONS_MAX;
    let head =
        "POST /v1/batch HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\n";
    let body = format!("{head}content-length: 12000000\r\n\r\n");
    for (reason, first, drop) in
        [("idle", head, &b"a: b\r\n"[..1]), ("slow_body", body.as_str(), &[b'\n'; 1100][..])]
    {
        // Twice as many as have a place, all the time.
        let dripping = Callers::drip(&server.api, first, drop, 2 * places);
        wait_for("they drip", || (dripping.passes.load(Ordering::Relaxed) > 30).then_some(()));
        for _ in 0..3 {
            let started = Instant::now();
            let url = format!("{}/v1/status", server.api);
            let answer = wait_for("there is an answer", || try_get(&url));
            assert_eq!(answer.status, 200, "{answer:?}");
            assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        }
        std::mem::drop(dripping);
        let label = format!("syncd_http_rejected_total{{port=\"api\",reason=\"{reason}\"}}");
        assert!(server.metric(&label) > 0.0, "{reason}");
    }
}

/// Callers that pipeline requests and read no answer or a little of it, or say nothing at all: more than a port has
/// places.
#[test]
fn unread_answers_keep_nobody_out() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    let places = syncd::http::CONNECTIONS_MAX;
    let timely = |url: &str| {
        let started = Instant::now();
        let answer = wait_for("there is an answer", || try_get(url));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(started.elapsed() < Duration::from_secs(10), "{url}: {:?}", started.elapsed());
    };
    let all_answer = || {
        for _ in 0..3 {
            for path in ["livez", "readyz"] {
                timely(&format!("{}/{path}", server.metrics));
            }
            timely(&format!("{}/v1/status", server.api));
        }
    };
    for (port, url, path) in
        [("metrics", &server.metrics, "/metrics"), ("api", &server.api, "/v1/status")]
    {
        // Half of them ask nothing: as many as there are places.
        let flood: Vec<_> = (0..2 * places)
            .map(|n| match n % 4 {
                0 => open(url, b""),
                1 => open(url, b"GET /v1/sta"),
                _ => ask_and_never_read(url, path),
            })
            .collect();
        all_answer();
        drop(flood);
        let sipping = Callers::sip(url, path, places + 32);
        wait_for("they sip", || (sipping.passes.load(Ordering::Relaxed) > 1).then_some(()));
        all_answer();
        drop(sipping);
        let closed: f64 = ["idle", "slow_reader", "long"]
            .map(|reason| {
                let labels = format!("{{port=\"{port}\",reason=\"{reason}\"}}");
                server.metric(&format!("syncd_http_rejected_total{labels}"))
            })
            .iter()
            .sum();
        assert!(closed > 0.0, "connections of the flood made room on {port}");
        let open = server.metric(&format!("syncd_http_connections{{port=\"{port}\"}}"));
        assert!(open <= places as f64, "{open}");
    }
    // Answers that nobody takes do not keep a stop waiting either.
    let flood: Vec<_> =
        (0..places / 2).map(|_| ask_and_never_read(&server.api, "/v1/status")).collect();
    let started = Instant::now();
    server.stop();
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    drop(flood);
}

/// Bodies that were announced and do not come take no room.
#[test]
fn announced_bodies_block_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    let announce = |bytes: usize| {
        let head =
            "POST /v1/batch HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\n";
        open(&server.api, format!("{head}content-length: {bytes}\r\n\r\n").as_bytes())
    };
    let announced: Vec<_> = (0..20).map(|_| announce(12 << 20)).collect();
    wait_for("all are connected", || {
        (server.metric("syncd_http_connections{port=\"api\"}") >= 20.0).then_some(())
    });
    assert_eq!(server.put("a", b"1").status, 200);
    assert_eq!(server.batch(&numbered("many", 0, 10_000)).status, 200);
    // They are told so, and their connections end.
    let cut = announced.into_iter().map(read_all).collect::<Vec<_>>();
    assert!(cut.iter().all(|answer| answer.starts_with("HTTP/1.1 408")), "{cut:?}");
}

/// Bytes of memory that a process has resident.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Batches of the most and smallest changes take much more memory than their text: it is counted.
#[test]
fn many_tiny_changes_stay_within_memory() {
    const BATCHES: usize = 210;
    const GROWTH_MAX: u64 = 300 << 20;
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &["--db", "keyless"]);
    let before = resident(server.id());
    let body = "{\"value\":\"\"}\n".repeat(65_536);
    let head =
        "POST /v1/batch HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\n";
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    let (peak, refused) = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let sent: Vec<_> =
                        (0..BATCHES / 6).map(|_| open(&server.api, request.as_bytes())).collect();
                    // Those that find no room are told at once; the others wait for their commit.
                    let mut refused = 0;
                    for mut stream in sent {
                        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                        let mut start = [0; 12];
                        if stream.read_exact(&mut start).is_ok() && &start == b"HTTP/1.1 429" {
                            refused += 1;
                        }
                    }
                    refused
                })
            })
            .collect();
        let mut peak = 0;
        while !lanes.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            peak = peak.max(resident(server.id()));
            std::thread::sleep(Duration::from_millis(20));
        }
        (peak, lanes.into_iter().map(|lane| lane.join().unwrap()).sum::<usize>())
    });
    let growth = peak.saturating_sub(before);
    println!("{} MiB more, {refused} of {BATCHES} refused", growth >> 20);
    assert!(growth < GROWTH_MAX, "{} MiB", growth >> 20);
    assert!(refused > 0, "the queue has a bound");
}

#[test]
fn waiting_for_a_client_of_another_database_fails_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (ours, other) = (Daemon::server(&at("ours"), &[]), Daemon::server(&at("other"), &[]));
    let client = ours.client(&at("client"), &[]);
    ours.write_many("a", 2, 10);
    other.write_many("a", 2, 10);
    client.wait_equal(&ours);
    assert_eq!(client.size(), other.size(), "sizes do not tell them apart");
    let wait = |server: &Daemon| {
        let (client, server) = (client.api.as_str(), server.api.as_str());
        let output =
            syncctl(&["wait", "--api", client, "--server-api", server, "--timeout", "30s"]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(wait(&ours), (Some(0), String::new()));
    let (code, error) = wait(&other);
    assert_eq!(code, Some(65), "{error}");
    for daemon in [&ours, &other] {
        let database = daemon.status()["database"].as_str().unwrap().to_string();
        assert!(error.contains(&database), "{error}");
    }
}

/// The size of an answer's state, from its head.
fn size_of(answer: &str) -> u64 {
    let line = answer.lines().find_map(|line| line.strip_prefix("syncd-size: ")).unwrap();
    line.trim().parse().unwrap()
}

/// A replica that is built anew while one of its readers takes an export: the reader gets the whole old state, and what
/// was kept for it is removed afterwards.
#[test]
fn an_export_outlives_the_generation_that_it_reads() {
    let directory = tempfile::tempdir().unwrap();
    let options = ["--log-retention", "1s", "--log-retention-bytes", "64KiB"];
    let server = Daemon::server(&directory.path().join("server"), &options);
    let proxy = Proxy::start(&server.sync);
    let client = server.client(&directory.path().join("client"), &["--server", &proxy.address]);
    write_large(&server);
    client.wait_equal(&server);
    let (size, mut export) = (client.size(), stalled_export(&client));
    proxy.close(true);
    let first = server.metric("syncd_server_log_first_sequence");
    // New commits until the log no longer reaches back to the replica.
    let mut round = 0;
    wait_for("the log was trimmed", || {
        server.write_many(&format!("later-{round}"), 130, 1);
        round += 1;
        (server.metric("syncd_server_log_first_sequence") > first + 20.0).then_some(())
    });
    proxy.close(false);
    client.wait_equal(&server);
    let iterations = "syncd_client_iterations_total{kind=\"state_sync\",result=\"ok\"}";
    assert!(client.metric(iterations) >= 1.0, "the replica was built anew");
    assert!(client.log_text().contains("kept for an export"), "{}", client.log_tail());
    let mut answer = String::new();
    export.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("0\r\n\r\n"), "the export is complete");
    assert_eq!(size_of(&answer), size, "of the state that it began with");
    assert_eq!(answer.matches("\"large-").count(), 4_000);
    assert_eq!(answer.matches("\"later-").count(), 0);
    wait_for("the old generation is removed", || {
        client.log_text().contains("the old generation was removed").then_some(())
    });
    assert_eq!(client.metric("syncd_http_exports_total{result=\"complete\"}"), 1.0);
}

/// Large answers that nobody reads: their memory is bounded, and others get theirs.
#[test]
fn unread_pages_stay_within_memory() {
    const CALLERS: usize = 400;
    const GROWTH_MAX: u64 = 200 << 20;
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &["--db", "keyless"]);
    let line = format!("{{\"value\":\"{}\"}}\n", "v".repeat(1000));
    assert_eq!(server.batch(line.repeat(1000).as_bytes()).status, 200);
    let before = resident(server.id());
    let path = "/v1/entries?limit=1000";
    let callers: Vec<_> = (0..CALLERS).map(|_| ask_and_never_read(&server.api, path)).collect();
    let mut peak = 0;
    let refused = "syncd_http_requests_total{route=\"/v1/entries\",method=\"GET\",code=\"429\"}";
    wait_for("pages are refused", || {
        peak = peak.max(resident(server.id()));
        (server.try_metric(refused) > Some(0.0)).then_some(())
    });
    let started = Instant::now();
    let page = wait_for("a page for one who reads", || {
        peak = peak.max(resident(server.id()));
        try_get(&format!("{}{path}", server.api)).filter(|answer| answer.status == 200)
    });
    assert_eq!(page.json()["entries"].as_array().unwrap().len(), 1000);
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    let growth = peak.saturating_sub(before);
    assert!(growth < GROWTH_MAX, "{} MiB", growth >> 20);
    drop(callers);
}
