//! `import`: many connections, safe to retry, never out of order for one key.
//!
//! Records are dealt to connections by a hash of their key, so that two writes of one key go the
//! same way and stay in order. Each batch carries an idempotency key of its own, so a batch whose answer
//! was lost is sent again without being written twice; a later import is another one.

use super::{ApiArgs, Failure, http::Api, lines, output::print_line, progress::Progress};
use crate::{
    api::ndjson,
    database::types::{Change, Root},
    documents::Receipt,
    exit,
};
use clap::Args;
use std::{
    fs::File,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{BufRead, BufReader, Error, ErrorKind, Read},
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

/// Batches that wait for one connection.
const QUEUE_BATCHES: usize = 4;
/// How long a batch is tried.
const TRY_FOR: Duration = Duration::from_secs(120);
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often a pause looks whether it is to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(50);
/// Most connections.
const CONNECTIONS_MAX: usize = 64;

/// Arguments of `import`.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// NDJSON file with a record a line; - is standard input
    file: PathBuf,
    /// Records in one commit
    #[arg(long, env = "SYNCD_BATCH", default_value_t = 1000)]
    batch: usize,
    /// Connections
    #[arg(long, env = "SYNCD_CONNECTIONS", default_value_t = 1)]
    connections: usize,
    /// Most records a second [default: no limit]
    #[arg(long, env = "SYNCD_RATE")]
    rate: Option<NonZeroU32>,
    #[command(flatten)]
    api: ApiArgs,
}

/// How records are sent.
pub(super) struct Plan {
    /// Records in one commit.
    pub batch: usize,
    /// Connections.
    pub connections: usize,
    /// Most records a second.
    pub rate: Option<NonZeroU32>,
}

/// Lines that go into one commit.
struct Batch {
    /// Number of each line in the file, from 1.
    lines: Vec<usize>,
    body: Vec<u8>,
}

impl Batch {
    const fn new() -> Self {
        Self { lines: Vec::new(), body: Vec::new() }
    }
}

/// What was imported.
#[derive(Clone, Debug, Default)]
pub(super) struct Summary {
    /// Records written.
    pub records: u64,
    /// Size of the database after the last commit.
    pub size: u64,
    /// Its root; none before the first commit.
    pub root: Option<Root>,
}

fn open(path: &Path) -> Result<Box<dyn Read + Send>, Failure> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(std::io::stdin()));
    }
    let file = File::open(path)
        .map_err(|error| Failure::new(exit::IO, format!("{}: {error}", path.display())))?;
    Ok(Box::new(file))
}

/// Imports a file and says how fast.
pub(super) fn run(args: &ImportArgs) -> Result<(), Failure> {
    if args.batch == 0 || args.batch > crate::commit_log::CHANGES_MAX {
        let max = crate::commit_log::CHANGES_MAX;
        let text = format!("invalid value '{}' for --batch: 1 to {max}", args.batch);
        return Err(Failure::new(exit::USAGE, text));
    }
    if args.connections == 0 || args.connections > CONNECTIONS_MAX {
        let text = format!(
            "invalid value '{}' for --connections: 1 to {CONNECTIONS_MAX}",
            args.connections
        );
        return Err(Failure::new(exit::USAGE, text));
    }
    let api = Api::new(&args.api)?;
    let input = BufReader::with_capacity(1 << 20, open(&args.file)?);
    let total = count_lines(&args.file);
    let progress = Progress::new(total, "imported");
    let started = Instant::now();
    let stop = AtomicBool::new(false);
    let plan = Plan { batch: args.batch, connections: args.connections, rate: args.rate };
    let summary = import(&api, input, &plan, &progress, &stop)?;
    progress.finish();
    let seconds = started.elapsed().as_secs_f64();
    let Some(root) = summary.root else {
        // No commit, so nothing is known of the database.
        return print_line("0 records");
    };
    print_line(format!(
        "{} records in {seconds:.2} s ({:.0} records/s); {} operations, root {root}",
        summary.records,
        summary.records as f64 / seconds.max(1e-9),
        summary.size
    ))
}

/// Records of a file, for the bar; `None` for a pipe.
fn count_lines(path: &Path) -> Option<u64> {
    let file = File::open(path)
        .ok()
        .filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut line = Vec::new();
    let mut records = 0;
    while lines::read_line(&mut reader, &mut line).ok()? {
        records += u64::from(!line.trim_ascii().is_empty());
    }
    Some(records)
}

/// Imports records from `input`. Ends early, with what is written by then, once `stop` is set.
pub(super) fn import(
    api: &Api,
    input: impl BufRead,
    plan: &Plan,
    progress: &Progress,
    stop: &AtomicBool,
) -> Result<Summary, Failure> {
    let summary = Mutex::new(Summary::default());
    let result = std::thread::scope(|scope| {
        let mut senders = Vec::new();
        let mut workers = Vec::new();
        for _ in 0..plan.connections {
            let (sender, batches) = sync_channel(QUEUE_BATCHES);
            senders.push(sender);
            let summary = &summary;
            workers.push(scope.spawn(move || {
                let sent = send_all(api, &batches, progress, summary, stop);
                if sent.is_err() {
                    // The other connections need not go on with what is incomplete anyway.
                    stop.store(true, Ordering::Release);
                }
                sent
            }));
        }
        let dealt = deal(input, plan, senders, stop);
        for worker in workers {
            worker.join().unwrap_or_else(|_| {
                Err(Failure::new(exit::INTERNAL, "a connection's thread panicked"))
            })?;
        }
        dealt
    });
    let summary = summary.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    match result {
        Ok(()) => Ok(summary),
        Err(failure) => {
            let text = format!("{failure}; {} records were written", summary.records);
            Err(Failure::new(failure.code, text))
        }
    }
}

/// Reads lines and deals them to connections by key. Ends early if it is to stop, or if a connection
/// failed.
fn deal(
    mut input: impl BufRead,
    plan: &Plan,
    senders: Vec<SyncSender<Batch>>,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let mut batches: Vec<Batch> = senders.iter().map(|_| Batch::new()).collect();
    let mut line = Vec::new();
    let mut due = Instant::now();
    for number in 1.. {
        if stop.load(Ordering::Acquire) {
            return Ok(());
        }
        let read = lines::read_line(&mut input, &mut line);
        if !read.map_err(|error| unreadable(number, &error))? {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        if let Some(rate) = plan.rate {
            pause_until(due, stop);
            // What a server that was away missed is not made up for in a burst.
            due = due.max(Instant::now()) + Duration::from_secs(1) / rate.get();
        }
        let lane = lane_of(&line, senders.len());
        let filling = &mut batches[lane];
        filling.lines.push(number);
        filling.body.extend_from_slice(&line);
        let full = filling.lines.len() >= plan.batch
            || filling.body.len() >= crate::wire::COMMIT_BYTES_MAX / 2;
        if full && senders[lane].send(std::mem::replace(filling, Batch::new())).is_err() {
            return Ok(());
        }
    }
    for (sender, batch) in senders.iter().zip(batches) {
        if !batch.lines.is_empty() {
            let _ = sender.send(batch);
        }
    }
    Ok(())
}

fn unreadable(number: usize, error: &Error) -> Failure {
    let code = if error.kind() == ErrorKind::InvalidData { exit::DATA } else { exit::IO };
    Failure::new(code, format!("line {number} cannot be read: {error}"))
}

/// Which connection a line goes to. A line that cannot be read goes anywhere: the server names
/// what is wrong with it.
fn lane_of(line: &[u8], lanes: usize) -> usize {
    if lanes == 1 {
        return 0;
    }
    // Decoded as the server does it: one key may be written as text and as base64.
    let changes = ndjson::parse(line, usize::MAX, false).unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    changes.first().and_then(Change::key).hash(&mut hasher);
    usize::try_from(hasher.finish() % lanes as u64).unwrap_or(0)
}

fn send_all(
    api: &Api,
    batches: &Receiver<Batch>,
    progress: &Progress,
    summary: &Mutex<Summary>,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    while let Ok(batch) = batches.recv() {
        let Some(receipt) = send(api, &batch, stop)? else { return Ok(()) };
        progress.add(batch.lines.len() as u64);
        let mut summary = summary.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        summary.records += batch.lines.len() as u64;
        if receipt.size >= summary.size {
            summary.size = receipt.size;
            summary.root = Some(receipt.root);
        }
    }
    Ok(())
}

/// Sends a batch until it is answered; `None` if it was stopped before.
fn send(api: &Api, batch: &Batch, stop: &AtomicBool) -> Result<Option<Receipt>, Failure> {
    let key = format!("import-{}", hex::encode(rand::random::<[u8; 16]>()));
    let headers = [("content-type", "application/x-ndjson"), ("idempotency-key", key.as_str())];
    let deadline = Instant::now() + TRY_FOR;
    let mut pause = Duration::from_millis(100);
    while !stop.load(Ordering::Acquire) {
        let (failure, wait) = match api.send("POST", "/v1/batch", &headers, &batch.body) {
            Ok(answer) if answer.status.is_success() => return answer.document().map(Some),
            Ok(answer) if answer.failure().code == exit::DATA => {
                return Err(name_line(&answer, batch));
            }
            Ok(answer) => (answer.failure(), answer.retry_after.unwrap_or(pause)),
            Err(failure) if failure.code != exit::TEMPORARY => return Err(failure),
            Err(failure) => (failure, pause),
        };
        if Instant::now() + wait > deadline {
            return Err(failure);
        }
        pause_until(Instant::now() + wait, stop);
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Ok(None)
}

/// Sleeps until a moment, or until it is to stop.
fn pause_until(moment: Instant, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(STOP_INTERVAL.min(left));
    }
}

/// A refusal with the line's number in the file instead of in the batch.
fn name_line(answer: &super::http::Answer, batch: &Batch) -> Failure {
    let within = answer.problem().and_then(|problem| problem.line);
    let number = within.and_then(|line| batch.lines.get(line.wrapping_sub(1)).copied());
    answer.failure_at(number)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use base64::Engine as _;

    #[test]
    fn a_key_keeps_its_lane_and_lines_their_numbers() {
        let text = "{\"key\":\"a\",\"value\":\"1\"}\n\n{\"key\":\"b\",\"value\":\"1\"}\n{\"key\":\"a\",\"value\":\"2\"}";
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..4).map(|_| sync_channel(8)).unzip();
        let plan = Plan { batch: 10, connections: 4, rate: None };
        deal(text.as_bytes(), &plan, senders, &AtomicBool::new(false)).unwrap();
        let batches: Vec<Batch> = receivers.iter().flat_map(|lane| lane.try_iter()).collect();
        let of_a: Vec<&Batch> = batches.iter().filter(|batch| batch.lines.contains(&1)).collect();
        assert!(of_a[0].lines.contains(&4), "both writes of 'a' go the same way");
        let mut lines: Vec<usize> = batches.iter().flat_map(|batch| batch.lines.clone()).collect();
        lines.sort_unstable();
        assert_eq!(lines, [1, 3, 4]);
        assert!(batches.iter().all(|batch| batch.body.ends_with(b"\n")));
    }

    #[test]
    fn a_key_keeps_its_lane_however_it_is_written() {
        let encode = |key: &str| base64::engine::general_purpose::STANDARD.encode(key);
        for n in 0..20 {
            let key = format!("clé/{n}");
            let text = format!("{{\"key\":\"{key}\",\"value\":\"1\"}}\n");
            let escaped = format!("{{\"value\":\"2\",\"key\":\"cl\\u00e9/{n}\"}}\n");
            let base64 = format!("{{\"key_b64\":\"{}\",\"delete\":true}}\n", encode(&key));
            let lane = lane_of(text.as_bytes(), 64);
            assert_eq!(lane_of(escaped.as_bytes(), 64), lane, "{key}");
            assert_eq!(lane_of(base64.as_bytes(), 64), lane, "{key}");
        }
    }
}
