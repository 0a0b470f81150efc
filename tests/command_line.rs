//! What a wrong command line, file, port or directory is answered with, and how daemons live.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

mod common;

use common::{BYTES, Daemon, NDJSON, command, free_port, get, send, wait_for};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Stdio},
};

struct Case {
    binary: &'static str,
    arguments: Vec<String>,
    code: i32,
    /// All of these are part of the message.
    says: Vec<String>,
}

fn case(binary: &'static str, arguments: &[&str], code: i32, says: &[&str]) -> Case {
    let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    Case { binary, arguments: owned(arguments), code, says: owned(says) }
}

fn check(case: &Case, directory: &Path) {
    let output = command(case.binary)
        .env("XDG_STATE_HOME", directory)
        .args(&case.arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let what = format!("{} {:?}: {:?}\n{text}", case.binary, case.arguments, output.status);
    assert_eq!(output.status.code(), Some(case.code), "{what}");
    if case.code == 64 {
        // A warning in the log may come before it.
        let lines = text.trim().lines().filter(|line| !line.starts_with('{')).count();
        assert_eq!(lines, 1, "one line: {what}");
    }
    for part in &case.says {
        assert!(text.contains(part.as_str()), "'{part}' is not in {what}");
    }
}

#[test]
fn wrong_use_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap().port().to_string();
    let file = root.join("file");
    std::fs::write(&file, "nonsense\n").unwrap();
    let file = file.display().to_string();
    let (under_file, missing) =
        (format!("{file}/storage"), root.join("missing").display().to_string());
    let storage = root.join("storage").display().to_string();
    let free = ["--api-port", "0", "--metrics-port", "0", "--storage-dir", storage.as_str()];
    let with = |more: &[&'static str]| [&free[..], more].concat();
    let cases = [
        case(
            "syncd-server",
            &["--db", "nonsense"],
            64,
            &["--db", "nonsense", "any, current, immutable, keyless"],
        ),
        case(
            "syncd-server",
            &["--mode", "compact"],
            64,
            &["--mode", "compact", "full with --db any"],
        ),
        case(
            "syncd-client",
            &["--mode", "compact", "--db", "current"],
            64,
            &["--mode", "compact", "full with --db current"],
        ),
        case(
            "syncd-server",
            &["--db", "keyless", "--storage", "compact"],
            64,
            &["--mode", "full", "compact with --storage compact"],
        ),
        case(
            "syncd-server",
            &["--storage", "compact"],
            64,
            &["--storage", "compact", "full with --db any"],
        ),
        case("syncd-server", &["--hash", "md5"], 64, &["--hash", "md5", "sha256, blake3"]),
        case("syncd-server", &["--port", "99999"], 64, &["--port", "99999", "0 to 65535"]),
        case("syncd-server", &["--port", "abc"], 64, &["--port", "abc", "0 to 65535"]),
        case(
            "syncd-server",
            &["--max-requests-per-second", "0"],
            64,
            &["--max-requests-per-second", "above 0"],
        ),
        case(
            "syncd-server",
            &["--log-level", "@/nowhere"],
            64,
            &["--log-level", "@FILE", "/nowhere"],
        ),
        case("syncd-server", &["--nonsense"], 64, &["--nonsense"]),
        case("syncd-server", &["--op-interval", "0s"], 64, &["--op-interval", "0s", "above zero"]),
        case("syncd-server", &["--op-interval", "soon"], 64, &["--op-interval", "soon", "250ms"]),
        case(
            "syncd-server",
            &["--log-retention-bytes", "1XB"],
            64,
            &["--log-retention-bytes", "1XB", "64MiB"],
        ),
        case("syncd-server", &["--max-value-bytes", "1GiB"], 64, &["--max-value-bytes", "65536"]),
        case("syncd-server", &["--max-connections", "0"], 64, &["--max-connections", "above 0"]),
        case("syncd-server", &["--host", "nonsense"], 64, &["--host", "nonsense", "IP address"]),
        case(
            "syncd-server",
            &["--api-host", "0.0.0.0"],
            64,
            &["--api-host", "0.0.0.0", "--api-token-file"],
        ),
        case("syncd-server", &["--api-token-file", &missing], 64, &["--api-token-file", &missing]),
        case(
            "syncd-server",
            &["--authorized-clients", &file],
            64,
            &["--authorized-clients", ":1: 'nonsense'"],
        ),
        case("syncd-server", &["--log-level", "loud"], 64, &["--log-level", "loud", "info"]),
        case(
            "syncd-server",
            &[
                "--identity-key",
                &file,
                "--storage-dir",
                &storage,
                "--api-port",
                "0",
                "--metrics-port",
                "0",
            ],
            64,
            &[&file, "not a private key"],
        ),
        case("syncd-server", &["--storage-dir", &under_file], 74, &[&under_file, "cannot be used"]),
        case(
            "syncd-server",
            &[&with(&["--port"])[..], &[busy.as_str()]].concat(),
            74,
            &["--port", &busy],
        ),
        case(
            "syncd-server",
            &["--storage-dir", &storage, "--api-port", &busy, "--metrics-port", "0"],
            74,
            &["--api-port", &busy],
        ),
        case(
            "syncd-server",
            &["--storage-dir", &storage, "--api-port", "0", "--metrics-port", &busy],
            74,
            &["--metrics-port", &busy],
        ),
        case("syncd-client", &["--server", "nonsense"], 64, &["--server", "nonsense", "HOST:PORT"]),
        case(
            "syncd-client",
            &["--server", "example.org:1"],
            64,
            &["--server-key", "not on this machine"],
        ),
        case(
            "syncd-client",
            &["--server-key", "abc"],
            64,
            &["--server-key", "abc", "64 hexadecimal digits"],
        ),
        case("syncd-client", &["--trusted-key", &file], 64, &["--trusted-key", &file]),
        case("syncd-client", &["--database", "abc"], 64, &["--database", "abc"]),
        case("syncd-client", &["--batch-size", "0"], 64, &["--batch-size", "0", "10000"]),
        case("syncd-client", &["-r", "1000"], 64, &["--max-outstanding-requests", "1000", "64"]),
        case("syncd-client", &["--api-host", "0.0.0.0"], 64, &["--api-host", "--read-token-file"]),
        case("syncctl", &["nonsense"], 64, &["nonsense"]),
        case("syncctl", &["import", &missing], 74, &[&missing]),
        case("syncctl", &["import", &file, "--batch", "0"], 64, &["--batch", "0"]),
        case("syncctl", &["import", &file, "--api", "ftp://x"], 64, &["ftp://x", "--api"]),
        case(
            "syncctl",
            &["get", "a", "--api", &format!("http://127.0.0.1:{}", free_port())],
            75,
            &["cannot reach"],
        ),
        case(
            "syncctl",
            &["health", "--url", &format!("http://127.0.0.1:{}", free_port())],
            1,
            &["cannot reach"],
        ),
        case(
            "syncctl",
            &["new-epoch", "--storage-dir", &missing],
            65,
            &["is no storage directory of a daemon"],
        ),
        case("syncctl", &["keygen", "-o", &file], 74, &[&file]),
        case(
            "syncctl",
            &["keygen", "-o", &missing, "--public", ".."],
            64,
            &["'..' for --public: a file"],
        ),
        case("syncctl", &["get", "a", "--token-file", &missing], 64, &["--token-file", &missing]),
        case("syncctl", &["get", "a", "--api", "http://"], 64, &["http://", "--api"]),
        case("syncctl", &["get", "a", "--api", "http://u:p@h"], 64, &["--api", "(secret)"]),
        case("syncctl", &["health", "--url", "ftp://x"], 64, &["ftp://x", "--url"]),
        case("syncctl", &["wait", "--server-api", "nonsense"], 64, &["nonsense", "--server-api"]),
        case("syncctl", &["put", "a", &format!("@{missing}")], 74, &[&missing]),
        case("syncctl", &["put", "a", "@/dev/zero"], 65, &["/dev/zero", "65536"]),
        case("syncctl", &["import", &root.display().to_string()], 74, &["line 1 cannot be read"]),
        case("syncctl", &["import", "/dev/zero"], 65, &["line 1 cannot be read", "longer"]),
    ];
    for case in &cases {
        check(case, root);
    }
    for (binary, arguments) in
        [("syncd-server", "--help"), ("syncd-client", "--help"), ("syncctl", "--version")]
    {
        assert!(command(binary).arg(arguments).output().unwrap().status.success());
    }
    assert!(!root.join("syncd").exists(), "a wrong command line makes no file");
    assert!(!root.join("missing").exists(), "a wrong command line makes no key");
}

#[test]
fn directories_are_exclusive_and_keep_their_kind() {
    let directory = tempfile::tempdir().unwrap();
    let storage = directory.path().join("server");
    let replica = directory.path().join("client");
    let server = Daemon::server(&storage, &["--hash", "sha256"]);
    let client = server.client(&replica, &[]);
    client.wait_equal(&server);
    let (at, replica_at) = (storage.display().to_string(), replica.display().to_string());
    let free = ["--api-port", "0", "--metrics-port", "0"];
    let busy = [&["--storage-dir", at.as_str(), "--port", "0"][..], &free].concat();
    check(&case("syncd-server", &busy, 75, &[&at, "in use by process"]), directory.path());
    let trust = server.trust();
    let trust: Vec<&str> = trust.iter().map(String::as_str).collect();
    let base =
        [&["--storage-dir", replica_at.as_str(), "--server", "127.0.0.1:9"][..], &free].concat();
    let same = [&base[..], &trust].concat();
    check(&case("syncd-client", &same, 75, &[&replica_at, "in use by process"]), directory.path());
    client.stop();
    server.stop();
    let other = [&busy[..], &["--db", "immutable"]].concat();
    check(
        &case("syncd-server", &other, 65, &["family 'any'", "--db says 'immutable'"]),
        directory.path(),
    );
    let other = [&busy[..], &["--hash", "blake3"]].concat();
    check(
        &case("syncd-server", &other, 65, &["hash 'sha256'", "--hash says 'blake3'"]),
        directory.path(),
    );
    let wrong = "00".repeat(32);
    let other = [&base[..], &trust[..4], &["--database", wrong.as_str()]].concat();
    check(&case("syncd-client", &other, 65, &["pinned to database", &wrong]), directory.path());
    let other = [&same[..], &["--db", "immutable"]].concat();
    check(
        &case("syncd-client", &other, 65, &["family 'any'", "'immutable' is configured"]),
        directory.path(),
    );
}

#[test]
fn a_client_of_another_family_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &["--db", "immutable"]);
    let mut client = server.spawn_client(&directory.path().join("client"), &[]);
    let status = client.wait();
    assert_eq!(status.code(), Some(65), "{}", client.log_tail());
    assert!(client.log_tail().contains("mismatch"), "{}", client.log_tail());
}

#[test]
fn bad_requests_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &["--max-value-bytes", "100"]);
    let client = server.client(&directory.path().join("client"), &[]);
    let long = "k".repeat(2000);
    let value = vec![b'v'; 101];
    let batch = |line: &str| format!("{{\"key\":\"a\",\"value\":\"1\"}}\n{line}\n").into_bytes();
    let key = |name: &str| format!("/v1/keys/{name}");
    type Headers<'a> = Vec<(&'a str, &'a str)>;
    type Case<'a> = (&'a str, String, Headers<'a>, Vec<u8>, u16, &'a str);
    let cases: Vec<Case<'_>> = vec![
        ("PUT", key(""), vec![BYTES], vec![], 404, "no_such_endpoint"),
        ("PUT", key("a"), vec![], vec![], 415, "content_type"),
        ("PUT", key("%zz"), vec![BYTES], vec![], 400, "malformed"),
        ("PUT", key("a"), vec![BYTES, ("idempotency-key", "with space")], vec![], 400, "malformed"),
        ("GET", "/v1/operations".into(), vec![], vec![], 404, "no_such_endpoint"),
        ("GET", "/v1/operations/x?proof=true".into(), vec![], vec![], 400, "malformed"),
        ("GET", "/v1/operations/9999?proof=true".into(), vec![], vec![], 404, "not_found"),
        ("PUT", key(&long), vec![BYTES], vec![], 413, "too_large"),
        ("PUT", key("a"), vec![BYTES], value, 413, "too_large"),
        (
            "PUT",
            key("a"),
            vec![BYTES, ("origin", "http://evil.example")],
            vec![],
            403,
            "foreign_origin",
        ),
        ("PUT", key("a"), vec![BYTES, ("host", "evil.example")], vec![], 421, "foreign_host"),
        (
            "POST",
            "/v1/batch".into(),
            vec![("content-type", "text/plain")],
            batch("{}"),
            415,
            "content_type",
        ),
        ("POST", "/v1/batch".into(), vec![NDJSON], batch("nonsense"), 400, "malformed"),
        ("POST", "/v1/batch".into(), vec![NDJSON], batch("{\"key\":\"a\"}"), 400, "malformed"),
        ("POST", "/v1/append".into(), vec![BYTES], vec![1], 422, "unsupported"),
        ("GET", key("absent"), vec![], vec![], 404, "not_found"),
        ("GET", key("absent") + "?min_size=999999&timeout=10ms", vec![], vec![], 412, "behind"),
        ("GET", key("absent") + "?min_size=many", vec![], vec![], 400, "malformed"),
        ("GET", key("absent") + "?proof=true", vec![], vec![], 422, "not_provable"),
        ("GET", "/v1/entries/1".into(), vec![], vec![], 422, "unsupported"),
        ("GET", "/v1/entries/%ff".into(), vec![], vec![], 400, "malformed"),
        ("GET", "/v1/nonsense".into(), vec![], vec![], 404, "no_such_endpoint"),
        ("PATCH", key("a"), vec![], vec![], 405, "method_not_allowed"),
    ];
    let before = server.root();
    for (method, path, headers, body, status, code) in cases {
        let answer = send(method, &format!("{}{path}", server.api), &headers, &body);
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        assert_eq!(answer.json()["code"], code, "{method} {path}");
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        if code == "malformed" && path == "/v1/batch" {
            assert_eq!(answer.json()["line"], 2, "{answer:?}");
            assert_eq!(answer.json()["line"], 2);
        }
    }
    let refused = send("PUT", &format!("{}/v1/keys/a", client.api), &[BYTES], b"1");
    assert_eq!((refused.status, refused.json()["code"].as_str()), (405, Some("read_only")));
    assert_eq!(refused.headers["allow"], "GET, HEAD");
    // A path that has no reads: nothing is allowed.
    let refused = send("POST", &format!("{}/v1/batch", client.api), &[NDJSON], b"");
    assert_eq!((refused.status, refused.headers["allow"].as_str()), (405, ""));
    let unknown = send("PUT", &format!("{}/v1/nonsense", client.api), &[BYTES], b"1");
    assert_eq!(unknown.json()["code"], "no_such_endpoint");
    // Absence is of a state, whatever was asked for.
    let absent = get(&format!("{}/v1/operations/99999?proof=true", server.api));
    assert_eq!((absent.status, absent.json()["code"].as_str()), (404, Some("not_found")));
    assert_eq!(absent.headers["syncd-root"], server.root());
    assert_eq!(server.root(), before, "nothing was written");
    // Keys are bytes: slashes, dots and percent signs mean nothing.
    for (path, key) in [
        ("a%2Fb", "a/b"),
        ("..%2F..", "../.."),
        ("%25", "%"),
        ("x/../y", "x/../y"),
        ("%2e%2e/%00", "../\0"),
        ("//etc//", "//etc//"),
        ("a%3Fb%23c", "a?b#c"),
    ] {
        assert_eq!(
            send("PUT", &format!("{}/v1/keys/{path}", server.api), &[BYTES], b"1").status,
            200
        );
        assert!(server.export().contains_key(key), "{key}");
    }
}

#[test]
fn a_full_queue_is_answered_busy() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &["--max-queue-requests", "1"]);
    let url = format!("{}/v1/batch", server.api);
    let busy = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for lane in 0..32 {
            let (url, busy) = (&url, &busy);
            scope.spawn(move || {
                for n in 0..20 {
                    let body = common::numbered(&format!("{lane}"), n * 100, 100);
                    let answer = send("POST", url, &[NDJSON], &body);
                    if answer.status == 429 {
                        assert_eq!(answer.json()["code"], "busy");
                        assert!(answer.headers["retry-after"].parse::<u64>().unwrap() >= 1);
                        busy.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    } else {
                        assert_eq!(answer.status, 200, "{answer:?}");
                    }
                }
            });
        }
    });
    assert!(busy.into_inner() > 0, "32 writers never met a queue of one");
}

#[test]
fn tokens_are_demanded_and_reloaded() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "first-token\n").unwrap();
    let option = token.display().to_string();
    let server = Daemon::server(&directory.path().join("server"), &["--api-token-file", &option]);
    let put = |authorization: &str| {
        let url = format!("{}/v1/keys/a", server.api);
        send("PUT", &url, &[BYTES, ("authorization", authorization)], b"1").status
    };
    assert_eq!(server.put("a", b"1").status, 401);
    assert_eq!(put("Bearer wrong-token"), 401);
    assert_eq!(put("Bearer first-token"), 200);
    assert_eq!(put("bearer first-token"), 200, "the scheme's case means nothing");
    assert_eq!(get(&format!("{}/v1/keys/a", server.api)).status, 200, "reads are open");
    std::fs::write(&token, "second-token\n").unwrap();
    server.signal(rustix::process::Signal::HUP);
    wait_for("the token is reloaded", || (put("Bearer second-token") == 200).then_some(()));
    assert_eq!(put("Bearer first-token"), 401);
}

/// A replica with a token: reads need it, writes are not for replicas whatever they carry.
#[test]
fn a_replica_with_a_token_takes_no_writes() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "read-token\n").unwrap();
    let option = token.display().to_string();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    server.put("a", b"1");
    let client = server.client(&directory.path().join("client"), &["--read-token-file", &option]);
    let url = format!("{}/v1/keys/a", client.api);
    let bearer = ("authorization", "Bearer read-token");
    wait_for("the replica has the key", || {
        (send("GET", &url, &[bearer], b"").status == 200).then_some(())
    });
    assert_eq!(get(&url).status, 401);
    assert_eq!(get(&format!("{}/v1/export", client.api)).status, 401);
    for headers in [vec![BYTES], vec![BYTES, bearer]] {
        let answer = send("PUT", &url, &headers, b"2");
        assert_eq!((answer.status, answer.json()["code"].as_str()), (405, Some("read_only")));
    }
}

/// What a client of HTTP sends too slowly, or too much of, ends its own connection.
#[test]
fn slow_and_large_requests_are_cut() {
    use std::io::{Read as _, Write as _};
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    let address = server.api.strip_prefix("http://").unwrap();
    let open = || std::net::TcpStream::connect(address).unwrap();
    let read_all = |mut stream: std::net::TcpStream| {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    // A head that never ends, byte by byte, and one that was never begun.
    let (mut slow, silent, mut kept) = (open(), open(), open());
    slow.write_all(b"GET /v1/status HTTP/1.1\r\nhost: localhost\r\nx: ").unwrap();
    // One that was used and stays open.
    kept.write_all(b"GET /v1/status HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut large = open();
    let head = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    let _ = large.write_all(head.as_bytes());
    let answer = read_all(large);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    // More than it announced, and less.
    let mut liar = open();
    let head = "PUT /v1/keys/a HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n";
    liar.write_all(format!("{head}content-length: 99999999999\r\n\r\nx").as_bytes()).unwrap();
    let mut start = [0; 12];
    liar.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
    for (name, stream) in [("slow", slow), ("silent", silent), ("kept", kept)] {
        stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
        let started = std::time::Instant::now();
        read_all(stream);
        assert!(started.elapsed().as_secs() < 50, "{name} was never closed");
    }
    assert_eq!(server.put("a", b"1").status, 200);
}

#[test]
fn ports_answer_and_a_second_signal_ends_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Daemon::server(&directory.path().join("server"), &["--shutdown-grace", "60s"]);
    for path in ["livez", "readyz"] {
        assert_eq!(get(&format!("{}/{path}", server.metrics)).status, 200);
    }
    let text = get(&format!("{}/metrics", server.metrics));
    assert!(text.headers["content-type"].starts_with("text/plain; version=0.0.4"));
    assert!(!String::from_utf8(text.body).unwrap().contains("# EOF"));
    assert_eq!(server.metric("syncd_server_commits_total"), 0.0);
    server.put("a", b"1");
    assert_eq!(server.metric("syncd_server_commits_total"), 1.0);
    // A request whose body never ends keeps the drain waiting.
    let address = server.api.strip_prefix("http://").unwrap();
    let mut stuck = std::net::TcpStream::connect(address).unwrap();
    let head = "PUT /v1/keys/a HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\ncontent-length: 10\r\n\r\n";
    std::io::Write::write_all(&mut stuck, head.as_bytes()).unwrap();
    wait_for("the request is there", || {
        (server.metric("syncd_http_connections{port=\"api\"}") >= 1.0).then_some(())
    });
    server.signal(rustix::process::Signal::TERM);
    wait_for("the server drains", || {
        (get(&format!("{}/readyz", server.metrics)).status == 503).then_some(())
    });
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.wait().code(), Some(143));
}

/// Bodies on their way and running exports have places; whoever finds none is told to come back.
#[test]
fn places_for_bodies_and_exports_are_bounded() {
    use std::io::{Read as _, Write as _};
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    let address = server.api.strip_prefix("http://").unwrap();
    let value = "x".repeat(50_000);
    for n in 0..400 {
        assert_eq!(server.put(&format!("large-{n}"), value.as_bytes()).status, 200);
    }
    let open = |head: String| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    // A reader that does not read keeps the one place for exports.
    let head = "GET /v1/export HTTP/1.1\r\nhost: localhost\r\n\r\n".to_string();
    let mut export = open(head);
    export.read_exact(&mut [0; 12]).unwrap();
    let answer = get(&format!("{}/v1/export", server.api));
    assert_eq!((answer.status, answer.json()["code"].as_str()), (429, Some("busy")));
    assert!(answer.headers.contains_key("retry-after"));
    drop(export);
    wait_for("the place is free again", || {
        (get(&format!("{}/v1/export", server.api)).status == 200).then_some(())
    });
    // Bodies of the largest size that come almost to their end.
    let head =
        "POST /v1/batch HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\n";
    let almost = vec![b' '; 12_582_911];
    let mut slow = Vec::new();
    wait_for("the places are taken", || {
        let mut one_more = open(format!("{head}content-length: 12582912\r\n\r\n"));
        let _ = one_more.write_all(&almost);
        one_more.set_read_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
        let mut start = [0; 12];
        let is_refused = one_more.read_exact(&mut start).is_ok() && &start == b"HTTP/1.1 429";
        slow.push(one_more);
        is_refused.then_some(())
    });
    assert!(slow.len() <= 7, "{} bodies of 12 MiB found room", slow.len() - 1);
    assert_eq!(server.put("small", b"1").status, 200, "small ones find room");
    drop(slow);
}

/// An export that is cut leaves the file of an earlier one as it was.
#[test]
fn a_cut_export_harms_no_file() {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let line = "{\"key\":\"a\",\"value\":\"1\"}\n";
        write!(stream, "{head}{:x}\r\n{line}\r\n", line.len()).unwrap();
    });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("export.ndjson");
    std::fs::write(&file, "the one before").unwrap();
    let name = file.display().to_string();
    let output = common::syncctl(&["export", "-o", &name, "--api", &url]);
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("incomplete after 1 records"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "the one before");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left over");
}

#[test]
fn syncctl_works_on_a_pair() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    let client = server.client(&directory.path().join("client"), &[]);
    let run = |arguments: &[&str]| {
        let output = command("syncctl").args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (code, receipt, _) = run(&["put", "a/b", "hello", "--api", &server.api]);
    assert_eq!(code, 0);
    let receipt: serde_json::Value = serde_json::from_str(&receipt).unwrap();
    let size = receipt["size"].to_string();
    let (code, line, error) = run(&["wait", "--api", &client.api, "--server-api", &server.api]);
    assert_eq!(code, 0, "{error}");
    assert!(line.contains(receipt["root"].as_str().unwrap()), "{line}");
    let get = ["get", "a/b", "--api", &client.api, "--min-size", &size];
    assert_eq!(run(&get), (0, "hello".into(), String::new()));
    assert_eq!(run(&["delete", "a/b", "--api", &server.api]).0, 0);
    assert_eq!(run(&["get", "a/b", "--api", &server.api]).0, 1);
    assert_eq!(run(&["get", "a/b", "--api", &format!("{}/", server.api)]).0, 1);
    let (code, _, error) =
        run(&["wait", "--api", &client.api, "--size", "999999", "--timeout", "300ms"]);
    assert_eq!(code, 75);
    assert!(error.contains("999999"), "{error}");
    let (code, table, _) = run(&["status", "--api", &server.api, "--api", &client.api]);
    assert_eq!(code, 0);
    assert!(table.contains("following") && table.contains("serving"), "{table}");
    let (_, json, _) = run(&["status", "--json", "--api", &client.api]);
    let status: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!(status["status"]["role"], "client");
    assert_eq!(run(&["health", "--url", &server.metrics]).0, 0);
    // What answers there is something else.
    assert_eq!(run(&["get", "a", "--api", &server.metrics]).0, 65);
    let (code, _, error) = run(&["wait", "--api", &server.api]);
    assert_eq!((code, error.contains("--api")), (64, true), "{error}");
    let (code, table, _) = run(&["status", "--api", &server.metrics]);
    assert_eq!((code, table.contains("refused")), (65, true), "{table}");
    // A wrong line is named by its number in the file.
    let file = directory.path().join("wrong.ndjson");
    let mut text = String::from_utf8(common::numbered("x", 0, 25)).unwrap();
    text.push_str("nonsense\n");
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let (code, _, error) = run(&["import", &file, "--batch", "10", "--api", &server.api]);
    assert_eq!(code, 65);
    assert!(error.contains("line 26") && error.contains("20 records were written"), "{error}");
    client.wait_equal(&server);
    let exported = directory.path().join("export.ndjson");
    let (code, ..) = run(&["export", "-o", &exported.display().to_string(), "--api", &client.api]);
    assert_eq!(code, 0);
    assert_eq!(common::records(&std::fs::read(exported).unwrap()).len(), 20);
}

#[test]
fn keys_and_a_new_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let storage = directory.path().join("server");
    let server = Daemon::server(&storage, &[]);
    server.put("a", b"1");
    let client = server.client(&directory.path().join("client"), &[]);
    client.wait_equal(&server);
    let (database, root) = (server.status()["database"].clone(), server.root());
    client.stop();
    server.stop();
    let at = storage.display().to_string();
    let output = command("syncctl").args(["new-epoch", "--storage-dir", &at]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let server = Daemon::server(&storage, &[]);
    assert_ne!(server.status()["database"], database);
    assert_eq!(server.root(), root, "the data stay");
    assert_eq!(server.put("b", b"2").status, 200);
    // The old replica refuses the new identity by name; a new one takes it.
    let mut old = server.spawn_client(&directory.path().join("client"), &[]);
    assert_eq!(old.wait().code(), Some(65));
    assert!(old.log_tail().contains("pinned to database"), "{}", old.log_tail());
    let new = server.client(&directory.path().join("new"), &[]);
    new.wait_equal(&server);
    let key = directory.path().join("key.pem").display().to_string();
    let output = command("syncctl").args(["keygen", "--pem", "-o", &key]).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim().len(), 64);
}

/// Everything below `root`: path, content, mode.
fn files_of(root: &Path) -> Vec<(String, String, u32)> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut files = Vec::new();
    for directory in std::fs::read_dir(root).unwrap() {
        for file in std::fs::read_dir(directory.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            files.push((name, std::fs::read_to_string(&path).unwrap(), mode));
        }
    }
    files.sort();
    files
}

#[test]
fn a_stack_gets_its_keys_once() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("keys");
    let keygen = |clients: &str| {
        let mut command = command("syncctl");
        command.args(["keygen", "--clients", clients, "--stack"]).arg(&root);
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(keygen("2"), (0, String::new()));
    let made = files_of(&root);
    let names: Vec<&str> = made.iter().map(|(name, ..)| name.as_str()).collect();
    let client = ["identity.key", "publisher.pub", "read.token", "server.pub"];
    let mut expected: Vec<String> =
        ["api.token", "authorized_clients", "identity.key", "publisher.key", "read.token"]
            .map(|name| format!("server/{name}"))
            .into();
    expected.extend(["writer/api.token", "writer/read.token"].map(String::from));
    expected.extend([1, 2].iter().flat_map(|n| client.map(|name| format!("client-{n}/{name}"))));
    expected.sort();
    assert_eq!(names, expected);
    for (name, _, mode) in &made {
        let secret = name.ends_with(".key") || name.ends_with(".token");
        assert_eq!(*mode, if secret { 0o600 } else { 0o644 }, "{name}");
    }
    // Again changes nothing; one more client adds to the list, and what was struck out stays so.
    assert_eq!(keygen("2"), (0, String::new()));
    assert_eq!(files_of(&root), made);
    let list = root.join("server/authorized_clients");
    let lines = || std::fs::read_to_string(&list).unwrap();
    let first = lines().lines().next().unwrap().to_string();
    std::fs::write(&list, lines().replace(&first, "# revoked")).unwrap();
    assert_eq!(keygen("3").0, 0);
    assert!(lines().starts_with("# revoked\n") && lines().lines().count() == 3, "{}", lines());
    // A replica trusts exactly this publisher, and gets in.
    let at = |name: &str| root.join(name).display().to_string();
    let server = Daemon::server(
        &directory.path().join("server"),
        &[
            "--publisher-key",
            &at("server/publisher.key"),
            "--identity-key",
            &at("server/identity.key"),
            "--authorized-clients",
            &at("server/authorized_clients"),
        ],
    );
    let replica = Daemon::start(
        "syncd-client",
        &directory.path().join("client"),
        &[
            "--server",
            &server.sync,
            "--identity-key",
            &at("client-2/identity.key"),
            "--server-key",
            &at("client-2/server.pub"),
            "--trusted-key",
            &at("client-2/publisher.pub"),
            "--database",
            &server.storage.join("public/database.id").display().to_string(),
        ],
    );
    replica.wait_equal(&server);
    // A lost original is not replaced behind the back of those who trust it.
    for name in ["publisher.key", "identity.key", "api.token", "read.token"] {
        let (path, aside) = (root.join("server").join(name), directory.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        let (code, error) = keygen("3");
        assert!(code == 65 && error.contains(name) && !path.exists(), "{code} {error}");
        std::fs::rename(&aside, &path).unwrap();
    }
    // Half made, it is completed.
    std::fs::remove_file(root.join("client-1/server.pub")).unwrap();
    std::fs::remove_file(root.join("writer/api.token")).unwrap();
    let before = files_of(&root).len();
    assert_eq!(keygen("3").0, 0);
    assert_eq!(files_of(&root).len(), before + 2);
}

#[test]
fn an_import_keeps_to_its_rate() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &["-o", "0", "-i", "0"]);
    let file = directory.path().join("records");
    let records: String =
        (0..11).map(|n| format!("{{\"key\":\"{n}\",\"value\":\"\"}}\n")).collect();
    std::fs::write(&file, records).unwrap();
    let started = std::time::Instant::now();
    let output = command("syncctl")
        .args(["import", "--batch", "1", "--rate", "10", "--api", &server.api])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(started.elapsed() >= std::time::Duration::from_secs(1), "{:?}", started.elapsed());
}

/// An API whose connections are answered by `serve`, as no real daemon does it.
fn fake_api(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().for_each(|stream| serve(stream.unwrap())));
    format!("http://{address}")
}

/// Reads a request; its body.
fn read_request(stream: &TcpStream) -> Vec<u8> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    body
}

const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";
const RECORD: &str = "{\"key\":\"a\",\"value\":\"1\"}\n";

/// Sends the first record of an export that has more.
fn begin_export(mut stream: &TcpStream) {
    read_request(stream);
    write!(stream, "{CHUNKED}{:x}\r\n{RECORD}\r\n", RECORD.len()).unwrap();
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let name = |entry: std::fs::DirEntry| entry.file_name().into_string().unwrap();
    std::fs::read_dir(directory).unwrap().map(|entry| name(entry.unwrap())).collect()
}

#[test]
fn an_incomplete_export_leaves_the_old_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("export.ndjson");
    std::fs::write(&file, "old\n").unwrap();
    let export = |api: &str| {
        let mut command = command("syncctl");
        command.args(["export", "--api", api, "--output"]).arg(&file).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let unharmed = || {
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "old\n");
        assert_eq!(names(directory.path()), ["export.ndjson"], "nothing is left over");
    };
    // The server ends in the middle.
    let output = export(&fake_api(|stream| begin_export(&stream))).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{text}");
    assert!(text.contains("incomplete after 1 records"), "{text}");
    unharmed();
    // The operator ends it in the middle.
    let api = fake_api(|stream| {
        begin_export(&stream);
        let _ = (&stream).read(&mut [0]);
    });
    for (number, name) in [(2, rustix::process::Signal::INT), (15, rustix::process::Signal::TERM)] {
        let child = export(&api);
        wait_for("the export has begun", || (names(directory.path()).len() == 2).then_some(()));
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(128 + number), "{text}");
        assert!(text.contains("interrupted"), "{text}");
        unharmed();
    }
    // A complete one takes its place.
    let api = fake_api(|stream| {
        begin_export(&stream);
        (&stream).write_all(b"0\r\n\r\n").unwrap();
    });
    assert!(export(&api).wait_with_output().unwrap().status.success());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), RECORD);
    assert_eq!(names(directory.path()), ["export.ndjson"]);
}

#[test]
fn an_import_says_how_far_it_is() {
    let api = fake_api(|stream| {
        read_request(&stream);
        let root = "00".repeat(32);
        let receipt = format!(r#"{{"size":1,"root":"{root}","sequence":1}}"#);
        let length = receipt.len();
        write!(&stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{receipt}").unwrap();
    });
    let mut child = command("syncctl")
        .args(["import", "-", "--api", &api])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // Nothing comes in yet, and yet there is a line.
    let (sender, first) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        sender.send(lines.next()).unwrap();
        lines.map(Result::unwrap).collect::<Vec<_>>()
    });
    let line = first.recv_timeout(common::DEADLINE).unwrap().unwrap().unwrap();
    assert!(line.starts_with("imported 0 records in "), "{line}");
    child.stdin.take().unwrap().write_all(RECORD.as_bytes()).unwrap();
    let rest = reader.join().unwrap();
    assert!(rest.last().unwrap().starts_with("imported 1 records in "), "{rest:?}");
    assert!(child.wait().unwrap().success());
}

/// Numbers of processes whose command line contains `text`.
fn processes(text: &str) -> Vec<i32> {
    let numbers = names(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok());
    numbers
        .filter(|number| {
            let line = std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(text)
        })
        .collect()
}

#[test]
fn a_demo_that_is_stopped_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let records = directory.path().join("records.ndjson");
    std::fs::write(&records, common::numbered("demo", 0, 400_000)).unwrap();
    let temporary = directory.path().join("temporary");
    std::fs::create_dir(&temporary).unwrap();
    for (number, name) in [
        (1, rustix::process::Signal::HUP),
        (2, rustix::process::Signal::INT),
        (15, rustix::process::Signal::TERM),
    ] {
        let mut child = command("syncctl")
            .args(["demo", "--exit", "--records"])
            .arg(&records)
            .env("TMPDIR", &temporary)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.starts_with("started  client")));
        // It imports now, which takes much longer than this test does.
        signal(&child, name);
        let last = lines.last().unwrap();
        let status = wait_for("the demo ends", || child.try_wait().unwrap());
        let left = processes(&temporary.display().to_string());
        for process in &left {
            let process = rustix::process::Pid::from_raw(*process).unwrap();
            let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        }
        assert!(left.is_empty(), "children of {name:?} run on");
        assert_eq!(status.code(), Some(128 + number), "{last}");
        assert!(last.contains("stopped before the comparison"), "{last}");
        assert!(names(&temporary).is_empty(), "the directory is removed");
    }
}

#[test]
fn a_demo_compares_both_sides_with_what_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, lines: &[&str]| {
        let file = directory.path().join(name);
        std::fs::write(&file, lines.join("\n")).unwrap();
        file.display().to_string()
    };
    let records = write(
        "records",
        &[
            r#"{"key":"a","value":"1"}"#,
            r#"{"key":"b","value":"1"}"#,
            r#"{"key":"b","delete":true}"#,
            r#"{"key_b64":"/w==","value_b64":"/w=="}"#,
            r#"{"key":"c","value":"1"}"#,
        ],
    );
    let updates =
        write("updates", &[r#"{"key_b64":"YQ==","delete":true}"#, r#"{"key":"c","value":"2"}"#]);
    let demo = ["demo", "--exit", "--records", &records, "--updates", &updates];
    let output = command("syncctl").args(demo).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in ["roots are equal", "publisher's 2 records are the", "replica's 2 records are the"]
    {
        assert!(text.contains(part), "'{part}' is not in {text}");
    }
}

#[test]
fn syncctl_reads_flags_from_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    let (missing, key) = (directory.path().join("missing"), directory.path().join("a.key"));
    let run = |arguments: &[&str], variables: &[(&str, &Path)]| {
        let mut command = command("syncctl");
        let output = command.args(arguments).envs(variables.iter().copied()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let variable = |name, value| (name, Path::new(value));
    let (code, _, error) = run(&["import", "-"], &[variable("SYNCD_BATCH", "0")]);
    assert_eq!((code, error.contains("invalid value '0' for --batch")), (64, true), "{error}");
    let (code, _, error) = run(&["demo"], &[("SYNCD_RECORDS", &missing)]);
    assert_eq!((code, error.contains("missing")), (74, true), "{error}");
    let (code, _, error) = run(&["status"], &[variable("SYNCD_JSON", "perhaps")]);
    assert_eq!((code, error.contains("--json"), error.lines().count()), (64, true, 1), "{error}");
    // A flag that says no is as one that is not there.
    let (code, ..) = run(&["keygen"], &[("SYNCD_OUTPUT", &key), variable("SYNCD_PEM", "false")]);
    assert_eq!(code, 0);
    assert!(!std::fs::read_to_string(&key).unwrap().contains("BEGIN"));
    let pem = directory.path().join("a.pem");
    assert_eq!(run(&["keygen"], &[("SYNCD_OUTPUT", &pem), variable("SYNCD_PEM", "1")]).0, 0);
    assert!(std::fs::read_to_string(&pem).unwrap().contains("BEGIN"));
    let (_, help, _) = run(&["wait", "--help"], &[("SYNCD_TOKEN_FILE", &key)]);
    assert!(help.contains("SYNCD_TIMEOUT") && help.contains("SYNCD_TOKEN_FILE"), "{help}");
    assert!(!help.contains(std::fs::read_to_string(&key).unwrap().trim()));
}

#[test]
fn what_went_wrong_shows_in_the_exit_code() {
    let answer = |text: &'static str| {
        fake_api(move |mut stream| {
            read_request(&stream);
            let _ = stream.write_all(text.as_bytes());
            // Holds the connection until the other side gives up.
            let _ = stream.read(&mut [0]);
        })
    };
    let run = |arguments: &[&str], api: &str, stdout: Stdio| {
        let mut command = command("syncctl");
        command.args(arguments).args(["--api", api, "--request-timeout", "500ms"]);
        // A proxy is not asked about this machine.
        command.env("ALL_PROXY", "http://127.0.0.1:9").stdout(stdout).stderr(Stdio::piped());
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
    let value = answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    assert_eq!(run(&["get", "a"], &value, Stdio::null()), (0, String::new()));
    for command in [&["get", "a"][..], &["put", "a", "1"], &["status"], &["status", "--json"]] {
        let (code, error) = run(command, &value, full());
        assert_eq!((code, error.contains("standard output")), (74, true), "{command:?}: {error}");
    }
    // A body that stands still.
    let (code, error) = run(
        &["get", "a"],
        &answer("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"),
        Stdio::null(),
    );
    assert_eq!(code, 75, "{error}");
    // A state that has not come so far yet.
    let (code, error) = run(
        &["get", "a", "--min-size", "9"],
        &answer("HTTP/1.1 412 Precondition Failed\r\ncontent-length: 0\r\n\r\n"),
        Stdio::null(),
    );
    assert_eq!(code, 75, "{error}");
    // A proxy's 404 does not mean that the key is absent.
    let (code, error) = run(
        &["get", "a"],
        &answer("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
        Stdio::null(),
    );
    assert_eq!(code, 65, "{error}");
}

#[test]
fn an_answer_that_is_too_large_is_not_cut() {
    let api = fake_api(|mut stream| {
        read_request(&stream);
        let length = 17 << 20;
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").unwrap();
        let _ = stream.write_all(&vec![b'x'; length]);
    });
    let output = command("syncctl").args(["get", "a", "--api", &api]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(65), "{error}");
    assert!(error.contains("larger than 16777216 bytes"), "{error}");
}

/// A rotation that was killed when it had done everything, before it said so, is not done again.
#[test]
fn a_rotation_that_was_interrupted_at_its_end_is_one_rotation() {
    let directory = tempfile::tempdir().unwrap();
    let storage = directory.path().join("server");
    let server = Daemon::server(&storage, &[]);
    server.put("a", b"1");
    server.stop();
    let at = storage.display().to_string();
    let rotate = || {
        let output = command("syncctl").args(["rotate-key", "-d", &at]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        (output.stdout, output.stderr)
    };
    let first = rotate();
    assert!(!storage.join("publisher.key.next").exists());
    // As it was before the last step.
    std::fs::hard_link(storage.join("publisher.key"), storage.join("publisher.key.next")).unwrap();
    assert_eq!(rotate(), first);
    assert_ne!(rotate(), first, "another rotation");
    Daemon::server(&storage, &[]).put("a", b"2");
}
