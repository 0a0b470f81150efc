//! `demo`: the product in one command, with real processes and real data.

use super::{
    Failure,
    http::{Answer, Api, key_path},
    import,
    progress::Progress,
    status,
};
use crate::exit;
use clap::Args;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, IsTerminal as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Debian's package index: what is imported first.
const RECORDS: &[u8] = include_bytes!("../../examples/data/debian-packages.ndjson");
/// Debian's security updates to the same keys: what is applied live.
const UPDATES: &[u8] = include_bytes!("../../examples/data/debian-security-updates.ndjson");
/// How long the processes may take to start, to catch up, or to stop.
const DEADLINE: Duration = Duration::from_secs(60);
/// Updates in one commit.
const UPDATE_BATCH: usize = 20;
/// Pause between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// End after the comparison instead of running on
    #[arg(long)]
    exit: bool,
    /// Import this NDJSON file instead of the package index
    #[arg(long)]
    records: Option<PathBuf>,
    /// Apply this NDJSON file instead of the security updates
    #[arg(long)]
    updates: Option<PathBuf>,
    /// Keep the temporary directory
    #[arg(long)]
    keep: bool,
}

/// The two processes and their directory. Dropping it stops and removes them.
struct Stage {
    directory: Option<tempfile::TempDir>,
    path: PathBuf,
    children: Vec<(&'static str, Child)>,
    stop: Arc<AtomicBool>,
}

/// Where a child listens.
struct Endpoints {
    sync: Option<String>,
    api: String,
    metrics: String,
}

/// Runs the demonstration.
pub fn run(args: &DemoArgs) -> Result<(), Failure> {
    let records = load(args.records.as_deref(), RECORDS)?;
    let updates = load(args.updates.as_deref(), UPDATES)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone())?;
    }
    let mut stage = Stage::new(args.keep, stop)?;
    let result = play(&mut stage, args, &records, &updates);
    stage.end();
    match result {
        // Ctrl-C is how it is meant to end.
        Err(failure) if failure.message.is_empty() => Ok(()),
        result => result,
    }
}

fn load(path: Option<&Path>, default: &[u8]) -> Result<Vec<u8>, Failure> {
    let Some(path) = path else { return Ok(default.to_vec()) };
    std::fs::read(path)
        .map_err(|error| Failure::new(exit::IO, format!("{}: {error}", path.display())))
}

fn say(text: impl AsRef<str>) {
    eprintln!("{}", text.as_ref());
}

fn play(stage: &mut Stage, args: &DemoArgs, records: &[u8], updates: &[u8]) -> Result<(), Failure> {
    say("syncd demo: a publisher, a verified replica, real records\n");
    let server = stage.start_server()?;
    let client = stage.start_client(&server)?;
    let api = |url: &str| Api::to(&format!("http://{url}"), None, Duration::from_secs(30));
    let (server_api, client_api) = (api(&server.api)?, api(&client.api)?);
    say(format!("started  server  api {}  metrics {}", server.api, server.metrics));
    say(format!("started  client  api {}  metrics {}\n", client.api, client.metrics));

    import_records(stage, &server_api, &client_api, records)?;
    apply_updates(stage, &server_api, &client_api, updates)?;
    wait_until_equal(stage, &server_api, &client_api)?;
    let equal = compare(&server_api, &client_api, records, updates)?;
    read_one(&client_api, updates)?;
    say(look_next(&server, &client, &stage.path));
    if !equal {
        return Err(Failure::new(exit::DATA, "the replica differs from the publisher"));
    }
    if args.exit {
        return Ok(());
    }
    say("running on, with a change every second; Ctrl-C stops everything and removes it\n");
    trickle(stage, &server_api, &client_api, updates)
}

fn lines_of(ndjson: &[u8]) -> Vec<&[u8]> {
    ndjson.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).collect()
}

fn import_records(
    stage: &Stage,
    server: &Api,
    client: &Api,
    records: &[u8],
) -> Result<(), Failure> {
    let total = lines_of(records).len() as u64;
    let bars = indicatif::MultiProgress::new();
    let imported = Progress::among(&bars, total, "imported");
    let replica = Progress::among(&bars, total, "replica");
    let started = Instant::now();
    let done = AtomicBool::new(false);
    let summary = std::thread::scope(|scope| {
        scope.spawn(|| show_replica(client, &replica, &done));
        let summary = import::import(server, BufReader::new(records), 250, 1, &imported, &done);
        done.store(true, Ordering::Release);
        summary
    })?;
    stage.check()?;
    imported.finish();
    client_reaches(stage, client, summary.size)?;
    replica.set(total);
    replica.finish();
    let seconds = started.elapsed().as_secs_f64();
    say(format!(
        "imported {} records, verified on the replica, in {seconds:.2} s ({:.0} records/s)",
        summary.records,
        summary.records as f64 / seconds
    ));
    Ok(())
}

/// Moves the replica's bar while records are imported: its operations, as records.
fn show_replica(client: &Api, progress: &Progress, done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        if let Ok(status) = status::ask(client) {
            progress.set(status["size"].as_u64().unwrap_or(0));
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn client_reaches(stage: &Stage, client: &Api, size: u64) -> Result<(), Failure> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        stage.check()?;
        let status = status::ask(client)?;
        if status["size"].as_u64().unwrap_or(0) >= size {
            return Ok(());
        }
        if Instant::now() > deadline {
            let text = format!("the replica did not catch up within {DEADLINE:?}: {status}");
            return Err(Failure::new(exit::TEMPORARY, text));
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn post(server: &Api, lines: &[&[u8]]) -> Result<Value, Failure> {
    let headers = [("content-type", "application/x-ndjson")];
    server.send("POST", "/v1/batch", &headers, &lines.join(&b'\n'))?.success()?.json()
}

/// Applies the updates in small commits, and measures how long the replica takes to have each.
fn apply_updates(stage: &Stage, server: &Api, client: &Api, updates: &[u8]) -> Result<(), Failure> {
    let lines = lines_of(updates);
    let progress = Progress::new(Some(lines.len() as u64), "updated");
    let mut delays = Vec::new();
    for batch in lines.chunks(UPDATE_BATCH) {
        stage.check()?;
        let receipt = post(server, batch)?;
        let acknowledged = Instant::now();
        let size = receipt["size"].as_u64().unwrap_or(0);
        // Waits on the replica itself: read-your-writes.
        client.get(&format!("{}?min_size={size}&timeout=30s", key_path("demo")))?;
        delays.push(acknowledged.elapsed());
        progress.add(batch.len() as u64);
    }
    progress.finish();
    delays.sort_unstable();
    let at =
        |quantile: usize| delays.get(delays.len() * quantile / 100).copied().unwrap_or_default();
    say(format!(
        "applied {} updates in {} commits; readable on the replica {:.1?} after the acknowledgement (median), {:.1?} (p99)\n",
        lines.len(),
        delays.len(),
        at(50),
        at(99)
    ));
    Ok(())
}

fn wait_until_equal(stage: &Stage, server: &Api, client: &Api) -> Result<(), Failure> {
    let size = status::ask(server)?["size"].as_u64().unwrap_or(0);
    client_reaches(stage, client, size)
}

/// Prints both states and compares them, roots and records.
fn compare(server: &Api, client: &Api, records: &[u8], updates: &[u8]) -> Result<bool, Failure> {
    let (ours, theirs) = (status::ask(server)?, status::ask(client)?);
    for status in [&ours, &theirs] {
        let role = status["role"].as_str().unwrap_or("-");
        let root = status["root"].as_str().unwrap_or("-");
        let lag = match status["lag_seconds"].as_f64() {
            Some(lag) => format!("  lag {} operations, {lag:.1} s", status["lag_operations"]),
            None => String::new(),
        };
        say(format!("{role:>8}  size {}  root {root}{lag}", status["size"]));
    }
    let roots = ours["root"] == theirs["root"] && ours["size"] == theirs["size"];
    let exported = entries(&client.get("/v1/export")?.success()?.body);
    let mut expected = entries(records);
    expected.extend(entries(updates));
    let same = exported == expected;
    say(format!(
        "\nroots are {}; the replica's {} records {}\n",
        if roots { "equal" } else { "DIFFERENT" },
        exported.len(),
        if same {
            "are the imported ones with the updates applied"
        } else {
            "are NOT what was written"
        },
    ));
    Ok(roots && same)
}

/// The final content of NDJSON lines.
fn entries(ndjson: &[u8]) -> BTreeMap<String, String> {
    lines_of(ndjson)
        .into_iter()
        .filter_map(|line| {
            let record: Value = serde_json::from_slice(line).ok()?;
            Some((record["key"].as_str()?.to_string(), record["value"].as_str()?.to_string()))
        })
        .collect()
}

fn read_one(client: &Api, updates: &[u8]) -> Result<(), Failure> {
    let first = lines_of(updates).first().copied().unwrap_or_default();
    let record: Value = serde_json::from_slice(first).unwrap_or_default();
    let key = record["key"].as_str().unwrap_or("demo");
    let answer: Answer = client.get(&key_path(key))?;
    say(format!("a read from the replica:  GET {}{}", client.base(), key_path(key)));
    for (name, value) in &answer.headers {
        if name.as_str().starts_with("syncd-") {
            say(format!("  {name}: {}", value.to_str().unwrap_or("-")));
        }
    }
    say(format!("  {}\n", String::from_utf8_lossy(&answer.body)));
    Ok(())
}

fn look_next(server: &Endpoints, client: &Endpoints, path: &Path) -> String {
    format!(
        "look next:\n  curl http://{api}/v1/status\n  curl -X PUT --data-binary 'hello' -H 'content-type: application/octet-stream' http://{api}/v1/keys/greeting\n  curl -i http://{replica}/v1/keys/greeting\n  curl http://{replica}/v1/status\n  curl -s http://{metrics}/metrics | grep syncd_client\n  logs: {path}/server.log {path}/client.log\n",
        api = server.api,
        replica = client.api,
        metrics = client.metrics,
        path = path.display(),
    )
}

/// Goes on with a change a second until it is stopped.
fn trickle(stage: &Stage, server: &Api, client: &Api, updates: &[u8]) -> Result<(), Failure> {
    let lines = lines_of(updates);
    for line in lines.iter().cycle() {
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            stage.check()?;
            std::thread::sleep(LOOK_INTERVAL);
        }
        post(server, &[line])?;
        if std::io::stderr().is_terminal() {
            let status = status::ask(client)?;
            eprint!(
                "\r  replica: {} operations, lag {:.1} s, root {}… ",
                status["size"],
                status["lag_seconds"].as_f64().unwrap_or(0.0),
                &status["root"].as_str().unwrap_or("-").chars().take(16).collect::<String>()
            );
        }
    }
    Ok(())
}

impl Stage {
    fn new(keep: bool, stop: Arc<AtomicBool>) -> Result<Self, Failure> {
        let directory = tempfile::Builder::new().prefix("syncd-demo-").tempdir()?;
        let path = directory.path().to_path_buf();
        let directory = if keep {
            let _ = directory.keep();
            None
        } else {
            Some(directory)
        };
        Ok(Self { directory, path, children: Vec::new(), stop })
    }

    /// Fails if the user wants to stop, or a child has ended.
    fn check(&self) -> Result<(), Failure> {
        if self.stop.load(Ordering::Acquire) {
            return Err(Failure::new(exit::OK, ""));
        }
        for (name, child) in &self.children {
            // `try_wait` wants `&mut`; a process that is gone has no directory in /proc.
            if !is_alive(child) {
                return Err(self.child_failed(name));
            }
        }
        Ok(())
    }

    fn child_failed(&self, name: &str) -> Failure {
        let log =
            std::fs::read_to_string(self.path.join(format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n");
        Failure::new(exit::INTERNAL, format!("the {name} has ended:\n{tail}"))
    }

    fn start_server(&mut self) -> Result<Endpoints, Failure> {
        let options = ["--port", "0", "-o", "0", "-i", "0"].map(String::from).to_vec();
        self.start("server", options)
    }

    fn start_client(&mut self, server: &Endpoints) -> Result<Endpoints, Failure> {
        let public = |name: &str| self.path.join("server/public").join(name).display().to_string();
        let options = vec![
            "--server".into(),
            server.sync.clone().unwrap_or_default(),
            "--server-key".into(),
            public("identity.pub"),
            "--trusted-key".into(),
            public("publisher.pub"),
            "--database".into(),
            public("database.id"),
        ];
        self.start("client", options)
    }

    /// Starts a daemon: this very program under another name, so that one binary is enough.
    fn start(&mut self, role: &'static str, options: Vec<String>) -> Result<Endpoints, Failure> {
        let storage = self.path.join(role);
        let log = File::create(self.path.join(format!("{role}.log")))?;
        let mut command = Command::new(std::env::current_exe()?);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SYNCD_")) {
            command.env_remove(name);
        }
        command
            .arg(role)
            .args(["--storage-dir".as_ref(), storage.as_os_str()])
            .args(["--api-port", "0", "--metrics-port", "0", "--log-format", "json"])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C reaches this program only, which stops the children in order.
            .process_group(0);
        self.children.push((role, command.spawn()?));
        let file = storage.join("public/endpoints.json");
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            self.check()?;
            if let Some(endpoints) = read_endpoints(&file) {
                return Ok(endpoints);
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Err(self.child_failed(role))
    }

    /// Stops the children in order, by force if need be, and removes the directory.
    fn end(&mut self) {
        for (_, child) in self.children.iter().rev() {
            terminate(child);
        }
        let deadline = Instant::now() + Duration::from_secs(12);
        for (_, child) in &mut self.children {
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(LOOK_INTERVAL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        self.children.clear();
        match self.directory.take() {
            Some(directory) => drop(directory),
            None => say(format!("kept {}", self.path.display())),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.children.is_empty() {
            self.end();
        }
    }
}

fn read_endpoints(file: &Path) -> Option<Endpoints> {
    let object: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let text = |name: &str| object[name].as_str().map(str::to_string);
    Some(Endpoints { sync: text("sync"), api: text("api")?, metrics: text("metrics")? })
}

/// Whether a child still runs: neither gone nor a zombie.
fn is_alive(child: &Child) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()));
    match stat {
        Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('Z')),
        // Without /proc, its end shows in its missing answers.
        Err(_) => !Path::new("/proc/self").exists(),
    }
}

fn terminate(child: &Child) {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}
