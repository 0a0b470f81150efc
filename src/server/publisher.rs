//! The one task that writes: drains the queue in groups, and makes one commit of each.
//!
//! The way of a group: check every request on its own → execute → sign → append and
//! sync → apply → acknowledge. A request that fails a check fails alone. Nothing is acknowledged
//! before the sync, and after a failed one nothing is signed any more.

use super::{
    idempotency::{CarriedKeys, Idempotency, Known},
    metrics::{DirectionLabel, Metrics, SourceLabel},
};
use crate::{
    api::{Room, WriteError, WriteRequest},
    checkpoint::{Checkpoint, SignedCheckpoint, unix_ms},
    commit_log::{CHANGES_MAX, Commit, IDEMPOTENCY_ENTRIES_MAX, IdempotencyEntry},
    database::{
        WriteRule,
        record::CommitMetadata,
        types::{Change, Digest, Mode},
    },
    documents::Receipt,
    ledger::{Error, History, Ledger},
    runtime::{Moment, Runtime, StepWatch},
    telemetry::{
        context::{TraceContext, TraceContextExt as _},
        storage::StorageErrors,
    },
    wire::COMMIT_BYTES_MAX,
};
use commonware_codec::EncodeSize as _;
use commonware_cryptography::ed25519::PrivateKey;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::{Instrument as _, Span, field::Empty};

/// How often log and database are looked after.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of memory that write requests may take while they are read and while they wait.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// When a writer should come back that met a full queue.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Where a write comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The HTTP API.
    Api,
    /// The generator.
    Generator,
}

/// Where a writer waits.
type Answer = oneshot::Sender<Result<Receipt, WriteError>>;

/// A write on its way.
struct Submission {
    request: WriteRequest,
    bytes: usize,
    source: Source,
    answer: Answer,
    /// The work that waits for it.
    span: Span,
    _room: Room,
}

/// The way to the publisher.
#[derive(Clone)]
pub struct Handle {
    queue: mpsc::Sender<Submission>,
    queue_bytes: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    rule: WriteRule,
    /// Whether conflicts cannot be seen.
    is_blind: bool,
}

impl Handle {
    /// Whether keys cannot be written: conflicts cannot be seen in compact storage.
    pub const fn is_blind(&self) -> bool {
        self.is_blind
    }

    /// Commits `request`, or changes nothing. Returns once it is durable.
    pub async fn write(
        &self,
        request: WriteRequest,
        source: Source,
    ) -> Result<Receipt, WriteError> {
        self.check(&request)?;
        let room = self.reserve(request.memory())?;
        self.write_in(room, request, source).await
    }

    /// Room for a write that takes at most `bytes` of memory.
    pub fn reserve(&self, bytes: usize) -> Result<Room, WriteError> {
        let room = Room::take(&self.queue_bytes, bytes, &self.metrics.queue_bytes);
        room.ok_or(WriteError::Busy { retry_after: RETRY_AFTER })
    }

    /// As [`Handle::write`], in room that was reserved before.
    pub async fn write_in(
        &self,
        mut room: Room,
        request: WriteRequest,
        source: Source,
    ) -> Result<Receipt, WriteError> {
        let bytes = self.check(&request)?;
        room.shrink_to(request.memory());
        let (answer, answered) = oneshot::channel();
        let submission =
            Submission { request, bytes, source, answer, span: Span::current(), _room: room };
        self.queue.try_send(submission).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => WriteError::Busy { retry_after: RETRY_AFTER },
            mpsc::error::TrySendError::Closed(_) => {
                WriteError::Unavailable("the server is stopping".into())
            }
        })?;
        self.metrics.queue_requests.inc();
        answered.await.unwrap_or_else(|_| {
            Err(WriteError::Internal("the server stopped while it committed this write".into()))
        })
    }

    /// What can be said without the database; the request's bytes.
    fn check(&self, request: &WriteRequest) -> Result<usize, WriteError> {
        let bytes: usize = request.changes.iter().map(Change::encode_size).sum();
        if bytes > COMMIT_BYTES_MAX {
            return Err(WriteError::TooLarge(format!(
                "{bytes} bytes of changes; a commit may have {COMMIT_BYTES_MAX}"
            )));
        }
        if request.changes.len() > CHANGES_MAX {
            return Err(WriteError::TooLarge(format!(
                "{} changes; a commit may have {CHANGES_MAX}",
                request.changes.len()
            )));
        }
        if self.is_blind && !request.changes.is_empty() {
            let text = "compact storage cannot see whether a key exists: keys are not written here";
            return Err(WriteError::Unsupported(text.into()));
        }
        for change in &request.changes {
            let fits = match change {
                Change::Put { .. } => self.rule != WriteRule::Append,
                Change::Delete { .. } => self.rule == WriteRule::Upsert,
                Change::Append { .. } => self.rule == WriteRule::Append,
            };
            if !fits {
                return Err(WriteError::Unsupported(unsupported(self.rule).into()));
            }
        }
        Ok(bytes)
    }
}

const fn unsupported(rule: WriteRule) -> &'static str {
    match rule {
        WriteRule::Upsert => "this family takes puts and deletes, no appends",
        WriteRule::InsertOnce => "this family takes puts of new keys only",
        WriteRule::Append => "this family takes appends only",
    }
}

/// What the publisher needs.
pub struct Config {
    /// The key that signs.
    pub key: PrivateKey,
    /// Requests that may wait.
    pub queue_requests_max: usize,
    /// How often an unchanged state is signed again.
    pub heartbeat_interval: Duration,
    /// How much history is kept.
    pub history: History,
}

/// The task's state.
struct Publisher<E: Runtime> {
    context: E,
    config: Config,
    ledger: Arc<Ledger<E>>,
    idempotency: Idempotency,
    metrics: Arc<Metrics>,
    errors: StorageErrors,
    queue: mpsc::Receiver<Submission>,
    /// Taken from the queue, but too large for the group before it.
    next: Option<Submission>,
}

/// Starts the publisher. It ends when every handle is dropped, or with the first error of the
/// ledger.
pub fn spawn<E: Runtime>(
    context: E,
    config: Config,
    ledger: Arc<Ledger<E>>,
    idempotency: Idempotency,
    metrics: Arc<Metrics>,
    errors: StorageErrors,
) -> (Handle, commonware_runtime::Handle<Result<(), Error>>) {
    let (sender, queue) = mpsc::channel(config.queue_requests_max);
    let handle = Handle {
        queue: sender,
        queue_bytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
        metrics: metrics.clone(),
        rule: ledger.kind().write_rule(),
        is_blind: ledger.mode() == Mode::Compact
            && ledger.kind().write_rule() == WriteRule::InsertOnce,
    };
    let task = context.child("publisher").spawn(move |context| {
        Publisher { context, config, ledger, idempotency, metrics, errors, queue, next: None }.run()
    });
    (handle, task)
}

/// The requests of one commit and what they add up to.
#[derive(Default)]
struct Group {
    changes: Vec<Change>,
    /// Where each key's final write stands in `changes`.
    positions: HashMap<Vec<u8>, usize>,
    idempotency: Vec<IdempotencyEntry>,
    answers: Vec<(Answer, Source, usize)>,
    /// The work that waits for it, where that is traced.
    traces: Vec<TraceContext>,
}

impl Group {
    fn add(&mut self, submission: Submission) {
        let Submission { request, source, answer, span, .. } = submission;
        self.traces.extend(TraceContext::of_span(&span));
        self.answers.push((answer, source, request.changes.len()));
        if let Some((key, body)) = request.idempotency {
            self.idempotency.push(IdempotencyEntry { key, body });
        }
        for change in request.changes {
            let Some(key) = change.key() else {
                self.changes.push(change);
                continue;
            };
            match self.positions.get(key) {
                Some(position) => self.changes[*position] = change,
                None => {
                    self.positions.insert(key.to_vec(), self.changes.len());
                    self.changes.push(change);
                }
            }
        }
    }

    fn known(&self, key: &[u8], body: Digest) -> Option<bool> {
        let entry = self.idempotency.iter().find(|entry| entry.key == key)?;
        Some(entry.body == body)
    }
}

impl<E: Runtime> Publisher<E> {
    async fn run(mut self) -> Result<(), Error> {
        // Both by the monotonic clock: a step of the wall clock holds no heartbeat back.
        let mut heartbeat = self.context.monotonic();
        let mut maintenance = heartbeat + MAINTENANCE_INTERVAL;
        let mut clock = self.watch_clock();
        loop {
            let due = heartbeat.min(maintenance).saturating_sub(self.context.monotonic());
            let first = match self.next.take() {
                Some(submission) => Some(submission),
                None => tokio::select! {
                    biased;
                    submission = self.queue.recv() => match submission {
                        Some(submission) => Some(submission),
                        None => return Ok(()),
                    },
                    () = self.context.sleep(due) => None,
                },
            };
            let stepped = self.look_at_clock(&mut clock);
            if let Some(first) = first {
                self.commit_group(first).await.inspect_err(|_| self.errors.count("commit"))?;
            }
            let now = self.context.monotonic();
            if now >= heartbeat || stepped {
                self.sign_again();
                heartbeat = now + self.config.heartbeat_interval;
            }
            if now >= maintenance {
                self.maintain().await.inspect_err(|_| self.errors.count("maintain"))?;
                maintenance = now + MAINTENANCE_INTERVAL;
            }
        }
    }

    /// Begins where the newest signature was made, so that a clock which was ahead before a
    /// restart is noticed after it.
    fn watch_clock(&self) -> StepWatch {
        let signed = Duration::from_millis(self.ledger.head().checkpoint.signed_at_ms);
        let signed = UNIX_EPOCH.checked_add(signed).unwrap_or(UNIX_EPOCH);
        let now = self.context.moment();
        StepWatch::new(Moment { wall: now.wall.max(signed), ..now })
    }

    /// Says when the wall clock stepped; whether it did. What is signed next has the time that it
    /// shows now, be that earlier than before: a publisher is never stuck in a future.
    fn look_at_clock(&self, watch: &mut StepWatch) -> bool {
        let Some(step) = watch.look(self.context.moment()) else {
            return false;
        };
        let direction = step.direction();
        tracing::warn!(
            direction,
            seconds = step.by().as_secs_f64(),
            "the clock of this machine stepped: until it is right, replicas may not count as fresh"
        );
        self.metrics.clock_steps.get_or_create(&DirectionLabel { direction }).inc();
        true
    }

    /// Signs the unchanged state again, so that replicas know that nothing was withheld.
    fn sign_again(&self) {
        let checkpoint = self.ledger.head().checkpoint;
        let signed_at_ms = unix_ms(self.context.current());
        self.ledger.resign(Checkpoint { signed_at_ms, ..checkpoint }.sign(&self.config.key));
    }

    async fn maintain(&mut self) -> Result<(), Error> {
        self.ledger.maintain(self.config.history).await?;
        let first = self.ledger.log().bounds().first;
        self.idempotency.forget_before(first);
        if self.idempotency.carried_expired(first) {
            // Left over, it would be read at each start, and change nothing.
            if let Err(error) = CarriedKeys::remove(&self.context).await {
                tracing::warn!(%error, "cannot remove expired idempotency keys");
            }
        }
        self.metrics.log_bytes.set(i64::try_from(self.ledger.log().bytes()).unwrap_or(i64::MAX));
        self.metrics.log_first_sequence.set(i64::try_from(first).unwrap_or(i64::MAX));
        self.metrics
            .idempotency_entries
            .set(i64::try_from(self.idempotency.count()).unwrap_or(i64::MAX));
        let holds = self.ledger.holds();
        self.metrics.held_operations.set(i64::try_from(holds.operations()).unwrap_or(i64::MAX));
        let lapsed = holds.lapsed().saturating_sub(self.metrics.holds_lapsed.get());
        self.metrics.holds_lapsed.inc_by(lapsed);
        Ok(())
    }

    /// Makes one commit of `first` and of what waits behind it, in the trace of `first`.
    async fn commit_group(&mut self, first: Submission) -> Result<(), Error> {
        let span = tracing::info_span!(
            parent: &first.span,
            "publisher.commit",
            sequence = Empty,
            changes = Empty,
            requests = Empty,
        );
        self.commit_traced(first).instrument(span).await
    }

    async fn commit_traced(&mut self, first: Submission) -> Result<(), Error> {
        let started = self.context.monotonic();
        let group = self.gather(first).await?;
        if group.answers.is_empty() {
            return Ok(());
        }
        if group.changes.is_empty() && group.idempotency.is_empty() {
            // Nothing to commit: the state stands as it is.
            let receipt = receipt(&self.ledger.head());
            group.answers.into_iter().for_each(|(answer, ..)| {
                let _ = answer.send(Ok(receipt.clone()));
            });
            return Ok(());
        }
        let span = Span::current();
        // The first request's trace has the span as its own; the others' point to it.
        group.traces.iter().skip(1).for_each(|trace| trace.link(&span));
        let head = self.ledger.head().checkpoint;
        let now_ms = unix_ms(self.context.current());
        let metadata = CommitMetadata { sequence: head.sequence + 1, committed_at_ms: now_ms };
        span.record("sequence", metadata.sequence);
        span.record("changes", group.changes.len());
        span.record("requests", group.answers.len());
        let preparing = self.ledger.prepare(&group.changes, metadata);
        let prepared =
            preparing.instrument(tracing::info_span!("publisher.commit.prepare")).await?;
        let commit = Commit::following(
            head.clone(),
            prepared.state,
            metadata,
            group.changes,
            group.idempotency,
            now_ms,
            &self.config.key,
        );
        if let Some(trace) = TraceContext::current() {
            self.ledger.note_trace(commit.sequence(), trace);
        }
        let appending = self.ledger.commit(std::slice::from_ref(&commit), prepared);
        appending.instrument(tracing::info_span!("publisher.commit.append")).await?;
        self.idempotency.remember(&commit);
        self.count(&commit, &head, &group.answers, started);
        let receipt = receipt(&commit.checkpoint);
        for (answer, ..) in group.answers {
            // A writer that went away does not undo its write.
            let _ = answer.send(Ok(receipt.clone()));
        }
        Ok(())
    }

    fn count(
        &self,
        commit: &Commit,
        base: &Checkpoint,
        answers: &[(Answer, Source, usize)],
        started: Duration,
    ) {
        for (_, source, changes) in answers {
            let source = match source {
                Source::Api => "api",
                Source::Generator => "generator",
            };
            self.metrics.operations.get_or_create(&SourceLabel { source }).inc_by(*changes as u64);
        }
        let state = commit.state();
        self.metrics.commits.inc();
        if state.root != base.root {
            self.metrics.root_changes.inc();
        }
        self.metrics.size.set(i64::try_from(state.size).unwrap_or(i64::MAX));
        self.metrics.sequence.set(i64::try_from(commit.sequence()).unwrap_or(i64::MAX));
        let elapsed = self.context.monotonic().saturating_sub(started);
        self.metrics.commit_duration.observe(elapsed.as_secs_f64());
        tracing::debug!(
            sequence = commit.sequence(),
            size = state.size,
            root = %state.root,
            changes = commit.changes.len(),
            "commit"
        );
    }

    /// Gathers the requests that can share a commit. Those that fail a check are answered here.
    async fn gather(&mut self, first: Submission) -> Result<Group, Error> {
        let mut group = Group::default();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(submission) = next {
            let fits = bytes + submission.bytes <= COMMIT_BYTES_MAX
                && group.changes.len() + submission.request.changes.len() <= CHANGES_MAX
                && group.answers.len() < IDEMPOTENCY_ENTRIES_MAX;
            if !fits && !group.answers.is_empty() {
                self.next = Some(submission);
                break;
            }
            self.metrics.queue_requests.dec();
            bytes += submission.bytes;
            self.admit(&mut group, submission).await?;
            next = self.queue.try_recv().ok();
        }
        Ok(group)
    }

    /// Checks one request against what was committed and what its group will commit.
    async fn admit(&self, group: &mut Group, submission: Submission) -> Result<(), Error> {
        if let Some((key, body)) = &submission.request.idempotency {
            let verdict = match (group.known(key, *body), self.idempotency.look_up(key, *body)) {
                (Some(true), _) => {
                    // The same request is in this group: both get the same answer.
                    group.answers.push((submission.answer, submission.source, 0));
                    return Ok(());
                }
                (Some(false), _) | (_, Known::Mismatch) => Err(WriteError::IdempotencyMismatch),
                (_, Known::Answered(receipt)) => Ok(receipt),
                (None, Known::New) if self.idempotency.is_full() => {
                    Err(WriteError::Busy { retry_after: RETRY_AFTER })
                }
                (None, Known::New) => {
                    return self.admit_changes(group, submission).await;
                }
            };
            let _ = submission.answer.send(verdict);
            return Ok(());
        }
        self.admit_changes(group, submission).await
    }

    async fn admit_changes(&self, group: &mut Group, submission: Submission) -> Result<(), Error> {
        if self.ledger.kind().write_rule() == WriteRule::InsertOnce
            && let Some(key) = self.conflict(group, &submission.request.changes).await?
        {
            let message = format!("key '{}' exists", String::from_utf8_lossy(&key));
            let _ = submission.answer.send(Err(WriteError::Conflict(message)));
            return Ok(());
        }
        group.add(submission);
        Ok(())
    }

    /// The first key that is set already: in the database, in the group, or twice in the request.
    async fn conflict(&self, group: &Group, changes: &[Change]) -> Result<Option<Vec<u8>>, Error> {
        let mut own = HashSet::new();
        for key in changes.iter().filter_map(Change::key) {
            if group.positions.contains_key(key) || !own.insert(key) {
                return Ok(Some(key.to_vec()));
            }
        }
        let existing = self.ledger.first_existing(changes.iter().filter_map(Change::key)).await?;
        Ok(existing.map(<[u8]>::to_vec))
    }
}

/// What a writer is told of the state that its write led to.
fn receipt(checkpoint: &SignedCheckpoint) -> Receipt {
    let checkpoint = &checkpoint.checkpoint;
    Receipt { size: checkpoint.size, root: checkpoint.root, sequence: checkpoint.sequence }
}
