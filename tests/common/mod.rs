//! Real daemons on free ports, and the requests that tests make of them.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod peer;
pub mod proxy;
pub mod relay;
pub mod skewed;

use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

/// How long anything may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Waits for a condition.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port for a daemon that may be started again on it. It is none of those that the system gives to outgoing
/// connections, of which one could have taken it in the meantime.
pub fn free_port() -> String {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test binaries that run at the same time begin at different ports.
    let start = std::process::id().wrapping_mul(97) as u16 % COUNT;
    wait_for("a port is free", || {
        let next = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (start + next) % COUNT;
        TcpListener::bind(("127.0.0.1", port)).is_ok().then(|| port.to_string())
    })
}

pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into()
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    fn read(mut response: ureq::http::Response<ureq::Body>) -> Result<Self, std::io::Error> {
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("?").to_string()))
            .collect();
        let mut body = Vec::new();
        response.body_mut().as_reader().read_to_end(&mut body)?;
        Ok(Self { status: response.status().as_u16(), headers, body })
    }
}

pub fn try_get(url: &str) -> Option<Answer> {
    Answer::read(agent().get(url).call().ok()?).ok()
}

pub fn get(url: &str) -> Answer {
    try_get(url).unwrap_or_else(|| panic!("no answer from {url}"))
}

pub fn try_send(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Answer> {
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Answer::read(agent().run(request.body(body).unwrap()).ok()?).ok()
}

pub fn send(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    try_send(method, url, headers, body).unwrap_or_else(|| panic!("no answer from {url}"))
}

pub const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");
pub const BYTES: (&str, &str) = ("content-type", "application/octet-stream");

/// A daemon, killed when dropped.
pub struct Daemon {
    child: Child,
    pub storage: PathBuf,
    pub sync: String,
    pub api: String,
    pub metrics: String,
    pub log: PathBuf,
}

/// A command of a binary of this package without the caller's `SYNCD_*`.
pub fn command(binary: &str) -> Command {
    let path = match binary {
        "syncd-server" => env!("CARGO_BIN_EXE_syncd-server"),
        "syncd-client" => env!("CARGO_BIN_EXE_syncd-client"),
        "syncctl" => env!("CARGO_BIN_EXE_syncctl"),
        other => panic!("no such binary: {other}"),
    };
    let mut command = Command::new(path);
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("SYNCD_") || name.starts_with("OTEL_"))
    {
        command.env_remove(name);
    }
    command
}

/// Runs `syncctl` to its end.
pub fn syncctl(arguments: &[&str]) -> std::process::Output {
    command("syncctl").args(arguments).output().unwrap()
}

impl Daemon {
    /// Starts a daemon on free ports and waits until it listens.
    pub fn start(binary: &str, storage: &Path, options: &[&str]) -> Self {
        let mut daemon = Self::spawn(binary, storage, options);
        daemon.wait_listening();
        daemon
    }

    /// Starts a daemon without waiting. Options like `NAME=value`, with a name in capitals, go into
    /// its environment.
    pub fn spawn(binary: &str, storage: &Path, options: &[&str]) -> Self {
        let _ = std::fs::remove_file(storage.join("public/endpoints.json"));
        std::fs::create_dir_all(storage.parent().unwrap()).unwrap();
        let log = storage.with_extension("log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let (variables, options): (Vec<&str>, Vec<&str>) =
            options.iter().partition(|option| option.starts_with(|c: char| c.is_ascii_uppercase()));
        let is_free = |port: &&str| !options.contains(port);
        let free = ["--api-port", "--metrics-port"].into_iter().filter(is_free);
        let ports: Vec<&str> = free.flat_map(|port| [port, "0"]).collect();
        let child = command(binary)
            .envs(variables.iter().filter_map(|variable| variable.split_once('=')))
            .args(["--storage-dir".as_ref(), storage.as_os_str()])
            .args(["--log-format", "json"])
            .args(ports)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        let storage = storage.to_path_buf();
        let empty = String::new;
        Self { child, storage, sync: empty(), api: empty(), metrics: empty(), log }
    }

    /// A daemon that was started otherwise; its log is where it was sent.
    pub fn of(child: Child, storage: &Path) -> Self {
        let (storage, empty) = (storage.to_path_buf(), String::new);
        let log = storage.with_extension("log");
        Self { child, storage, sync: empty(), api: empty(), metrics: empty(), log }
    }

    /// Waits until the daemon has written where it listens.
    pub fn wait_listening(&mut self) {
        let file = self.storage.join("public/endpoints.json");
        let endpoints = wait_for("the daemon listens", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the daemon ended with {status}:\n{}", self.log_tail());
            }
            serde_json::from_slice::<Value>(&std::fs::read(&file).ok()?).ok()
        });
        let text = |name: &str| endpoints[name].as_str().unwrap_or_default().to_string();
        self.sync = text("sync");
        self.api = format!("http://{}", text("api"));
        self.metrics = format!("http://{}", text("metrics"));
    }

    /// A server with the generator off and a free port, unless `options` say otherwise.
    pub fn server(storage: &Path, options: &[&str]) -> Self {
        let mut all = Vec::new();
        let port = free_port();
        for default in [["-o", "0"], ["-i", "0"], ["--port", &port]] {
            if !options.contains(&default[0]) {
                all.extend(default);
            }
        }
        all.extend(options);
        Self::start("syncd-server", storage, &all)
    }

    /// Options that make a client trust this server.
    pub fn trust(&self) -> Vec<String> {
        let public = |name: &str| self.storage.join("public").join(name).display().to_string();
        vec![
            "--server-key".into(),
            public("identity.pub"),
            "--trusted-key".into(),
            public("publisher.pub"),
            "--database".into(),
            public("database.id"),
        ]
    }

    /// A client of this server.
    pub fn client(&self, storage: &Path, options: &[&str]) -> Self {
        let mut client = self.spawn_client(storage, options);
        client.wait_listening();
        client
    }

    /// A client of this server that trusts another publisher key than the one in its files.
    pub fn client_trusting(&self, storage: &Path, key: &str, server: Option<&str>) -> Self {
        let public = |name: &str| self.storage.join("public").join(name).display().to_string();
        let options = [
            "--server",
            server.unwrap_or(&self.sync),
            "--server-key",
            &public("identity.pub"),
            "--trusted-key",
            key,
            "--database",
            &public("database.id"),
        ];
        Self::start("syncd-client", storage, &options)
    }

    /// A client of this server, not waited for.
    pub fn spawn_client(&self, storage: &Path, options: &[&str]) -> Self {
        let mut all = self.trust();
        if !options.contains(&"--server") {
            all.extend(["--server".to_string(), self.sync.clone()]);
        }
        all.extend(options.iter().map(ToString::to_string));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        Self::spawn("syncd-client", storage, &all)
    }

    pub fn status(&self) -> Value {
        get(&format!("{}/v1/status", self.api)).json()
    }

    pub fn size(&self) -> u64 {
        self.status()["size"].as_u64().unwrap()
    }

    pub fn root(&self) -> String {
        self.status()["root"].as_str().unwrap_or_default().to_string()
    }

    /// A sample of `/metrics`, if there is one of this name.
    pub fn try_metric(&self, name: &str) -> Option<f64> {
        let text = get(&format!("{}/metrics", self.metrics)).body;
        let text = String::from_utf8(text).unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
    }

    /// A sample of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        self.try_metric(name).unwrap_or_else(|| panic!("no sample '{name}'"))
    }

    /// The lines of an export.
    pub fn export(&self) -> BTreeMap<String, String> {
        let answer = get(&format!("{}/v1/export", self.api));
        assert_eq!(answer.status, 200, "{answer:?}");
        records(&answer.body)
    }

    pub fn put(&self, key: &str, value: &[u8]) -> Answer {
        send("PUT", &format!("{}/v1/keys/{key}", self.api), &[BYTES], value)
    }

    pub fn batch(&self, body: &[u8]) -> Answer {
        send("POST", &format!("{}/v1/batch", self.api), &[NDJSON], body)
    }

    /// Writes `commits` commits of `changes` new keys each; the records as NDJSON.
    pub fn write_many(&self, prefix: &str, commits: usize, changes: usize) {
        for commit in 0..commits {
            let answer = self.batch(&numbered(prefix, commit * changes, changes));
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }

    /// Waits until this replica equals `server`.
    pub fn wait_equal(&self, server: &Daemon) {
        wait_for("the replica equals the server", || {
            let (ours, theirs) = (self.status(), server.status());
            (ours["root"] == theirs["root"] && ours["size"] == theirs["size"]).then_some(())
        });
        assert_eq!(self.root(), server.root());
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// Identifier of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the process ends", || self.child.try_wait().unwrap())
    }

    /// The exit status, if the process has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Stops in order; must exit 0.
    pub fn stop(mut self) {
        self.signal(rustix::process::Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.log_tail());
    }

    /// Everything that was logged.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}:\n{}", self.log.display(), self.log_tail());
        }
        self.kill();
    }
}

/// Keys and values of NDJSON lines; later lines win.
pub fn records(ndjson: &[u8]) -> BTreeMap<String, String> {
    String::from_utf8(ndjson.to_vec())
        .unwrap()
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let record: Value = serde_json::from_str(line).unwrap();
            let text = |name: &str| record[name].as_str().unwrap().to_string();
            (text("key"), text("value"))
        })
        .collect()
}

/// NDJSON of numbered records.
pub fn numbered(prefix: &str, from: usize, count: usize) -> Vec<u8> {
    (from..from + count)
        .map(|n| format!("{{\"key\":\"{prefix}/{n}\",\"value\":\"value of {n}\"}}\n"))
        .collect::<String>()
        .into_bytes()
}

pub fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data").join(name)
}
