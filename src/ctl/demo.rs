//! `demo`: the product in one command, with real processes and real data.

use super::{
    Failure, export,
    http::{Api, key_path},
    import,
    progress::Progress,
    status,
};
use crate::{
    api::ndjson,
    database::types::{Change, VALUE_LENGTH_MAX},
    documents::{Endpoints, Receipt},
    exit, stdio,
};
use clap::{Args, builder::BoolishValueParser};
use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, IsTerminal as _, Write as _},
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Debian's package index: what is imported first.
const RECORDS: &[u8] = include_bytes!("../../examples/data/debian-packages.ndjson");
/// Debian's security updates to the same keys: what is applied live.
const UPDATES: &[u8] = include_bytes!("../../examples/data/debian-security-updates.ndjson");
/// How long the processes may take to start, to catch up, or to stop.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long one request may take: the processes are on this machine.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Records imported in one commit.
const IMPORT_BATCH: usize = 250;
/// Updates in one commit.
const UPDATE_BATCH: usize = 20;
/// Pause between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// End after the comparison instead of running on
    #[arg(long, env = "SYNCD_EXIT", value_parser = BoolishValueParser::new())]
    exit: bool,
    /// Import this NDJSON file instead of the package index
    #[arg(long, env = "SYNCD_RECORDS")]
    records: Option<PathBuf>,
    /// Apply this NDJSON file instead of the security updates
    #[arg(long, env = "SYNCD_UPDATES")]
    updates: Option<PathBuf>,
    /// Keep the temporary directory
    #[arg(long, env = "SYNCD_KEEP", value_parser = BoolishValueParser::new())]
    keep: bool,
}

/// The two processes and their directory. Dropping it stops and removes them.
struct Stage {
    directory: Option<tempfile::TempDir>,
    path: PathBuf,
    children: Vec<(&'static str, Child)>,
    /// Number of the signal that asked for the end, or 0.
    stop: Arc<AtomicUsize>,
}

/// Keys and values.
type Content = HashMap<Vec<u8>, Vec<u8>>;

/// Runs the demonstration.
pub(super) fn run(args: &DemoArgs) -> Result<(), Failure> {
    let records = load(args.records.as_deref(), RECORDS)?;
    let updates = load(args.updates.as_deref(), UPDATES)?;
    let mut content = Content::new();
    apply(&mut content, &records, args.records.as_deref())?;
    apply(&mut content, &updates, args.updates.as_deref())?;
    let stop = Arc::new(AtomicUsize::new(0));
    for signal in
        [signal_hook::consts::SIGHUP, signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM]
    {
        let number = usize::try_from(signal).unwrap_or_default();
        signal_hook::flag::register_usize(signal, stop.clone(), number)?;
    }
    let mut stage = Stage::new(args.keep, stop)?;
    let result = play(&mut stage, args, &records, &updates, &content);
    stage.end();
    result
}

fn load(path: Option<&Path>, default: &[u8]) -> Result<Vec<u8>, Failure> {
    let Some(path) = path else { return Ok(default.to_vec()) };
    std::fs::read(path)
        .map_err(|error| Failure::new(exit::IO, format!("{}: {error}", path.display())))
}

/// Changes `content` as the lines say. A line that cannot be read ends the demonstration before it
/// begins.
fn apply(content: &mut Content, ndjson: &[u8], path: Option<&Path>) -> Result<(), Failure> {
    for (index, line) in ndjson.split(|byte| *byte == b'\n').enumerate() {
        let changes = ndjson::parse(line, VALUE_LENGTH_MAX, false).map_err(|_| {
            let path = path.map(|path| format!("{}: ", path.display())).unwrap_or_default();
            let text = format!("{path}line {} is no record that can be imported", index + 1);
            Failure::new(exit::DATA, text)
        })?;
        for change in changes {
            match change {
                Change::Put { key, value } => content.insert(key, value),
                Change::Delete { key } => content.remove(&key),
                // Not written in NDJSON.
                Change::Append { .. } => None,
            };
        }
    }
    Ok(())
}

/// Writes to stderr. A terminal that is gone is no reason to leave the children alone.
fn say(text: impl AsRef<str>) {
    stdio::note(text.as_ref());
}

fn play(
    stage: &mut Stage,
    args: &DemoArgs,
    records: &[u8],
    updates: &[u8],
    content: &Content,
) -> Result<(), Failure> {
    say("syncd demo: a publisher, a verified replica, real records\n");
    let server = stage.start_server()?;
    let client = stage.start_client(&server)?;
    let api = |address: SocketAddr| {
        Api::without_token("demo", &format!("http://{address}"), REQUEST_TIMEOUT)
    };
    let (server_api, client_api) = (api(server.api)?, api(client.api)?);
    say(format!("started  server  api {}  metrics {}", server.api, server.metrics));
    say(format!("started  client  api {}  metrics {}\n", client.api, client.metrics));

    import_records(stage, &server_api, &client_api, records)?;
    apply_updates(stage, &server_api, &client_api, updates)?;
    wait_until_equal(stage, &server_api, &client_api)?;
    let equal = compare(stage, &server_api, &client_api, content)?;
    read_one(&client_api, updates, content)?;
    if !equal {
        return Err(Failure::new(exit::DATA, "the records are not what was written"));
    }
    if args.exit {
        return Ok(());
    }
    say(look_next(&server, &client, &stage.path));
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
    let (stop, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let summary = std::thread::scope(|scope| {
        scope.spawn(|| show_replica(client, &replica, &done));
        let importing = scope.spawn(|| {
            let plan = import::Plan { batch: IMPORT_BATCH, connections: 1, rate: None };
            import::import(server, BufReader::new(records), &plan, &imported, &stop)
        });
        let mut checked = Ok(());
        while checked.is_ok() && !importing.is_finished() {
            std::thread::sleep(LOOK_INTERVAL);
            checked = stage.check();
        }
        stop.store(true, Ordering::Release);
        let summary = importing.join();
        done.store(true, Ordering::Release);
        checked?;
        summary.unwrap_or_else(|_| Err(Failure::new(exit::INTERNAL, "the import panicked")))
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
            progress.set(status.size);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn client_reaches(stage: &Stage, client: &Api, size: u64) -> Result<(), Failure> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        stage.check()?;
        let status = status::ask(client)?;
        if status.size >= size {
            return Ok(());
        }
        if Instant::now() > deadline {
            let text = format!("the replica did not catch up within {DEADLINE:?}: {status:?}");
            return Err(Failure::new(exit::TEMPORARY, text));
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn post(server: &Api, lines: &[&[u8]]) -> Result<Receipt, Failure> {
    let headers = [("content-type", "application/x-ndjson")];
    server.send("POST", "/v1/batch", &headers, &lines.join(&b'\n'))?.success()?.document()
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
        readable_at(stage, client, receipt.size)?;
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

/// Waits on the replica itself until it has `size` operations: read-your-writes.
fn readable_at(stage: &Stage, client: &Api, size: u64) -> Result<(), Failure> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        stage.check()?;
        let path = format!("{}?min_size={size}&timeout=1s", key_path("demo"));
        let answer = client.get(&path)?;
        match answer.status.as_u16() {
            // Whether the key exists is of no interest.
            200 | 404 => return Ok(()),
            412 if Instant::now() < deadline => {}
            _ => return Err(answer.failure()),
        }
    }
}

fn wait_until_equal(stage: &Stage, server: &Api, client: &Api) -> Result<(), Failure> {
    let size = status::ask(server)?.size;
    client_reaches(stage, client, size)
}

/// Prints both states and compares them with each other, and their records with what was written.
fn compare(stage: &Stage, server: &Api, client: &Api, content: &Content) -> Result<bool, Failure> {
    let (ours, theirs) = (status::ask(server)?, status::ask(client)?);
    for status in [&ours, &theirs] {
        let root = status.root.map_or_else(|| "-".into(), |root| root.to_string());
        let lag = match &status.client {
            Some(client) => {
                format!("  lag {} operations, {:.1} s", client.lag_operations, client.lag_seconds)
            }
            None => String::new(),
        };
        say(format!("{:>8}  size {}  root {root}{lag}", status.role.to_string(), status.size));
    }
    let roots = ours.root.is_some() && (ours.root, ours.size) == (theirs.root, theirs.size);
    say(format!("\nroots are {}", if roots { "equal" } else { "DIFFERENT" }));
    let mut same = true;
    for (whose, api) in [("publisher", server), ("replica", client)] {
        let mut response = api.stream("/v1/export")?;
        if !response.status().is_success() {
            return Err(api.read(response)?.failure());
        }
        let input = BufReader::new(response.body_mut().as_reader());
        let (records, wrong) = count_wrong(stage, input, content)?;
        same &= wrong == 0;
        say(match wrong {
            0 => format!(
                "the {whose}'s {records} records are the imported ones with the updates applied"
            ),
            wrong => format!(
                "the {whose}'s {records} records are NOT what was written: {wrong} are wrong or missing"
            ),
        });
    }
    say("");
    Ok(roots && same)
}

/// Compares an export with what it has to be: its records, and how many of them are wrong or
/// missing.
fn count_wrong(
    stage: &Stage,
    input: impl std::io::BufRead,
    content: &Content,
) -> Result<(u64, usize), Failure> {
    let mut missing: HashMap<&[u8], &[u8]> =
        content.iter().map(|(key, value)| (key.as_slice(), value.as_slice())).collect();
    let mut wrong = 0;
    let records = export::read_lines(input, |line| {
        stage.check_stop()?;
        let right = match ndjson::parse(line, VALUE_LENGTH_MAX, false).as_deref() {
            Ok([Change::Put { key, value }]) => {
                missing.remove(key.as_slice()) == Some(value.as_slice())
            }
            _ => false,
        };
        wrong += usize::from(!right);
        Ok(())
    })?;
    Ok((records, wrong + missing.len()))
}

/// Shows a read of the first updated key, if it is text and was not deleted.
fn read_one(client: &Api, updates: &[u8], content: &Content) -> Result<(), Failure> {
    let first = lines_of(updates).first().copied().unwrap_or_default();
    let changes = ndjson::parse(first, VALUE_LENGTH_MAX, false).unwrap_or_default();
    let key = changes.first().and_then(Change::key).filter(|key| content.contains_key(*key));
    let Some(key) = key.and_then(|key| std::str::from_utf8(key).ok()) else { return Ok(()) };
    let answer = client.get(&key_path(key))?.success()?;
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

/// Goes on with a change a second until it is stopped, which is how it is meant to end.
fn trickle(stage: &Stage, server: &Api, client: &Api, updates: &[u8]) -> Result<(), Failure> {
    let lines = lines_of(updates);
    let mut lines = lines.iter().cycle();
    loop {
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            if stage.check_stop().is_err() {
                return Ok(());
            }
            stage.check()?;
            std::thread::sleep(LOOK_INTERVAL);
        }
        if let Some(line) = lines.next() {
            post(server, &[line])?;
        }
        if std::io::stderr().is_terminal() {
            let status = status::ask(client)?;
            let _ = write!(
                std::io::stderr(),
                "\r  replica: {} operations, lag {:.1} s, root {}… ",
                status.size,
                status.client.map_or(0.0, |client| client.lag_seconds),
                status.root.map_or_else(String::new, |root| root.to_string()[..16].to_string())
            );
        }
    }
}

impl Stage {
    fn new(keep: bool, stop: Arc<AtomicUsize>) -> Result<Self, Failure> {
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

    /// Fails, with the code that shells know it by, if a signal asked for the end.
    fn check_stop(&self) -> Result<(), Failure> {
        match u8::try_from(self.stop.load(Ordering::Acquire)).unwrap_or_default() {
            0 => Ok(()),
            signal => Err(Failure::new(128 + signal, "stopped before the comparison")),
        }
    }

    /// Fails if a signal asked for the end, or a child has ended.
    fn check(&self) -> Result<(), Failure> {
        self.check_stop()?;
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
            server.sync.map_or_else(String::new, |sync| sync.to_string()),
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
            // Ctrl-C and the end of the terminal reach this program only, which stops the children in order.
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
            Some(directory) => {
                if let Err(error) = directory.close() {
                    say(format!("cannot remove {}: {error}", self.path.display()));
                }
            }
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
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const RECORDS: &str = "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\",\"value\":\"1\"}\n\n{\"key_b64\":\"/w==\",\"value_b64\":\"/w==\"}\n";

    #[test]
    fn the_content_follows_the_lines() {
        let mut content = Content::new();
        apply(&mut content, RECORDS.as_bytes(), None).unwrap();
        apply(&mut content, b"{\"key_b64\":\"YQ==\",\"delete\":true}\n", None).unwrap();
        let expected = [(b"b".to_vec(), b"1".to_vec()), (vec![255], vec![255])];
        assert_eq!(content, Content::from(expected));
        let failure = apply(&mut content, b"\nnonsense\n", Some("file".as_ref())).unwrap_err();
        assert_eq!(failure.code, exit::DATA);
        assert!(failure.message.contains("file: line 2"), "{failure}");
    }

    #[test]
    fn every_difference_counts() {
        let stage = Stage::new(false, Arc::default()).unwrap();
        let mut content = Content::new();
        apply(&mut content, RECORDS.as_bytes(), None).unwrap();
        let wrong = |export: &str| count_wrong(&stage, export.as_bytes(), &content).unwrap();
        assert_eq!(wrong(RECORDS.replace("\n\n", "\n").as_str()), (3, 0));
        assert_eq!(wrong(""), (0, 3), "missing");
        let changed = "{\"key\":\"a\",\"value\":\"2\"}\n";
        assert_eq!(wrong(changed), (1, 3), "another value, two missing");
        assert_eq!(wrong(&changed.replace('a', "c")), (1, 4), "unknown, three missing");
        assert_eq!(wrong(&changed.replace('2', "1").repeat(2)), (2, 3), "twice, two missing");
    }
}
