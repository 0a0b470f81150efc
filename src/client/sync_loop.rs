//! The loop of a replica: follow where the log reaches back, state sync where it does not.

use super::{
    connection::{Backoff, EQUIVOCATION, Session},
    metrics::{IterationLabel, KindLabel},
    replica::{Phase, Replica},
};
use crate::{
    checkpoint::{Admission, Refusal, SignedCheckpoint, check_freshness, unix_ms},
    commit_log::Commit,
    database::{EXECUTION_VERSION, Generations},
    ledger::{self, History, Ledger},
    link::{Link, LinkError},
    replicate::{
        LinkSource,
        continuity::{self, Continuity},
        follow::{self, Received},
        state_sync,
    },
    runtime::Runtime,
    wire::{Code, Request, Response, Welcome},
};
use std::{
    future::Future,
    num::{NonZeroU64, NonZeroUsize},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};
use tokio::sync::{mpsc, watch};

/// How the loop goes forward.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Commits are followed as they come; else an iteration every `sync_interval`.
    pub push: bool,
    /// Pause between iterations of poll.
    pub sync_interval: Duration,
    /// How often a newer target is asked for while an iteration of poll catches up.
    pub target_update_interval: Duration,
}

/// What the loop needs.
pub struct Config {
    /// Pace.
    pub pace: Pace,
    /// How to fetch in state sync.
    pub state_sync: state_sync::Config,
    /// Oldest signature accepted for a first adoption.
    pub age_max: Duration,
    /// Clock difference tolerated.
    pub skew: Duration,
    /// How much history is kept.
    pub history: History,
}

/// Why the process has to end.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// Our own storage.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
}

/// Why one session ended, short of the process.
enum End {
    /// The connection is gone; another one will come.
    Disconnected,
    /// The server cannot or may not serve us now.
    Pause(Phase, String),
}

/// What following came to.
enum Outcome {
    /// The target was reached (poll).
    Reached,
    /// The log does not reach back far enough.
    StateSync,
    /// The session is over.
    End(End),
}

/// The loop's state.
pub struct SyncLoop<E: Runtime> {
    /// The runtime.
    pub context: E,
    /// Configuration.
    pub config: Config,
    /// Shared state.
    pub replica: Arc<Replica<E>>,
    /// Generations.
    pub generations: Generations<E>,
    /// Sessions from the connection task.
    pub sessions: watch::Receiver<Option<Arc<Session<E>>>>,
    /// Their links.
    pub links: watch::Receiver<Option<Arc<Link<E>>>>,
    /// Where an equivocation is told.
    pub fatal: mpsc::Sender<String>,
    /// Set when the process drains: the loop ends between two commits, never within one.
    pub stop: watch::Receiver<bool>,
}

/// What a select over the stop signal and work gave.
enum Step<T> {
    Stop,
    Done(T),
}

impl<E: Runtime> SyncLoop<E> {
    /// Runs until told to stop, or until the storage fails.
    pub async fn run(mut self) -> Result<(), Fatal> {
        let mut backoff = Backoff::default();
        loop {
            let Some(session) = self.session().await else { return self.finish().await };
            let before = self.replica.head().map(|head| head.checkpoint.sequence);
            let end = match self.work(&session).await? {
                Step::Stop => return self.finish().await,
                Step::Done(end) => end,
            };
            if self.replica.head().map(|head| head.checkpoint.sequence) != before {
                backoff.reset();
            }
            if let End::Pause(phase, error) = end {
                tracing::warn!(reason = error, "cannot advance");
                self.replica.set_phase(phase, self.context.current());
                self.replica.set_error(Some(error));
            }
            let pause = backoff.next(&mut self.context);
            let sleep = self.context.sleep(pause);
            if let Step::Stop = self.or_stop(sleep).await {
                return self.finish().await;
            }
        }
    }

    /// Awaits `work` unless the process drains first. Only for what may be dropped half way.
    async fn or_stop<T>(&self, work: impl Future<Output = T>) -> Step<T> {
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => Step::Stop,
            output = work => Step::Done(output),
        }
    }

    /// The session, once there is one; `None` to stop.
    async fn session(&self) -> Option<Arc<Session<E>>> {
        let mut sessions = self.sessions.clone();
        loop {
            let current = sessions.borrow_and_update().clone();
            if let Some(session) = current.filter(|session| !session.link.is_closed()) {
                return Some(session);
            }
            match self.or_stop(sessions.changed()).await {
                Step::Done(Ok(())) => {}
                Step::Done(Err(_)) | Step::Stop => return None,
            }
        }
    }

    /// Makes what was adopted durable.
    async fn finish(&self) -> Result<(), Fatal> {
        self.replica.known.keep().await;
        match self.replica.ledger.load_full() {
            Some(ledger) => Ok(ledger.sync().await?),
            None => Ok(()),
        }
    }

    /// Works with one session until it ends.
    async fn work(&mut self, session: &Arc<Session<E>>) -> Result<Step<End>, Fatal> {
        loop {
            let outcome = match self.replica.ledger.load_full() {
                Some(ledger) => self.advance(&ledger, session).await?,
                None => Step::Done(Outcome::StateSync),
            };
            let outcome = match outcome {
                Step::Stop => return Ok(Step::Stop),
                Step::Done(outcome) => outcome,
            };
            match outcome {
                Outcome::End(end) => return Ok(Step::Done(end)),
                Outcome::Reached => {
                    self.replica.set_phase(Phase::Polling, self.context.current());
                    let sleep = self.context.sleep(self.config.pace.sync_interval);
                    if let Step::Stop = self.or_stop(sleep).await {
                        return Ok(Step::Stop);
                    }
                    if session.link.is_closed() {
                        return Ok(Step::Done(End::Disconnected));
                    }
                }
                Outcome::StateSync => match self.state_sync(session).await? {
                    Step::Stop => return Ok(Step::Stop),
                    Step::Done(Some(end)) => return Ok(Step::Done(end)),
                    Step::Done(None) => {}
                },
            }
        }
    }

    /// Follows the log, for ever (push) or up to the newest checkpoint (poll).
    async fn advance(
        &self,
        ledger: &Arc<Ledger<E>>,
        session: &Arc<Session<E>>,
    ) -> Result<Step<Outcome>, Fatal> {
        if session.welcome.execution != EXECUTION_VERSION {
            return Ok(self.advance_across_versions(ledger, session).await);
        }
        let target = if self.config.pace.push {
            None
        } else {
            match self.or_stop(self.ask_target(&session.link)).await {
                Step::Stop => return Ok(Step::Stop),
                Step::Done(Ok(target)) => Some(target),
                Step::Done(Err(end)) => return Ok(Step::Done(Outcome::End(end))),
            }
        };
        if let Some(target) = &target {
            ledger.resign(target.clone());
        }
        let head = ledger.head().checkpoint;
        if target.as_ref().is_some_and(|target| target.checkpoint.sequence <= head.sequence) {
            return Ok(Step::Done(Outcome::Reached));
        }
        self.follow(ledger, session, target).await
    }

    /// With a server of another execution version, new states are synced as they come.
    async fn advance_across_versions(
        &self,
        ledger: &Arc<Ledger<E>>,
        session: &Arc<Session<E>>,
    ) -> Step<Outcome> {
        match self.or_stop(self.ask_target(&session.link)).await {
            Step::Stop => Step::Stop,
            Step::Done(Err(end)) => Step::Done(Outcome::End(end)),
            Step::Done(Ok(target)) => {
                let behind = target.checkpoint.sequence > ledger.head().checkpoint.sequence;
                Step::Done(if behind { Outcome::StateSync } else { Outcome::Reached })
            }
        }
    }

    /// Asks for the newest checkpoint and verifies it.
    async fn ask_target(&self, link: &Arc<Link<E>>) -> Result<SignedCheckpoint, End> {
        match link.request(Request::Checkpoint).await {
            Ok(Response::Checkpoint(checkpoint)) => {
                self.observe(&checkpoint, link).await?;
                Ok(*checkpoint)
            }
            Ok(_) => Err(self.misbehaved(link, LinkError::Protocol("unexpected answer"))),
            Err(error) => Err(self.link_end(error)),
        }
    }

    /// Verifies a checkpoint and takes it as known; a wrong one ends the connection.
    async fn observe(
        &self,
        checkpoint: &SignedCheckpoint,
        link: &Arc<Link<E>>,
    ) -> Result<Admission, End> {
        let now = self.context.current();
        let admission = self.replica.known.observe(checkpoint, now).await;
        admission.map_err(|refusal| self.refuse(&refusal, link))
    }

    fn refuse(&self, refusal: &Refusal, link: &Arc<Link<E>>) -> End {
        link.close(LinkError::Protocol("the server's checkpoint is not acceptable"));
        if matches!(refusal, Refusal::Equivocation(_)) {
            return self.equivocation(refusal.to_string());
        }
        let word = if refusal.is_mismatch() { "mismatch" } else { "rejected" };
        End::Pause(Phase::Refusing(word), refusal.to_string())
    }

    /// An equivocation was found: serve on, or exit if that is configured.
    fn equivocation(&self, text: String) -> End {
        let _ = self.fatal.try_send(format!("{EQUIVOCATION}{text}"));
        End::Pause(Phase::Refusing("equivocation"), text)
    }

    /// The server did what no honest one does.
    fn misbehaved(&self, link: &Arc<Link<E>>, error: LinkError) -> End {
        link.close(error.clone());
        End::Pause(Phase::Refusing("rejected"), error.to_string())
    }

    fn link_end(&self, error: LinkError) -> End {
        match error {
            LinkError::Refused(refused) if refused.code == Code::Ahead => {
                End::Pause(Phase::Stalled("server_behind"), refused.to_string())
            }
            LinkError::Refused(refused) => {
                End::Pause(Phase::Stalled("rejected"), refused.to_string())
            }
            error => {
                self.replica.set_error(Some(error.to_string()));
                End::Disconnected
            }
        }
    }

    async fn follow(
        &self,
        ledger: &Arc<Ledger<E>>,
        session: &Arc<Session<E>>,
        mut target: Option<SignedCheckpoint>,
    ) -> Result<Step<Outcome>, Fatal> {
        let sequence = ledger.head().checkpoint.sequence;
        let mut stream = match session.link.follow(sequence).await {
            Ok(stream) => stream,
            Err(error) => return Ok(Step::Done(Outcome::End(self.link_end(error)))),
        };
        self.replica.set_phase(Phase::Following, self.context.current());
        let mut target_asked = self.context.current();
        loop {
            let received = match self.or_stop(follow::receive(&mut stream)).await {
                Step::Stop => return Ok(Step::Stop),
                Step::Done(Ok(received)) => received,
                Step::Done(Err(LinkError::Refused(refused))) if refused.code == Code::Pruned => {
                    return Ok(Step::Done(Outcome::StateSync));
                }
                Step::Done(Err(error @ LinkError::Protocol(_))) => {
                    return Ok(Step::Done(Outcome::End(self.misbehaved(&session.link, error))));
                }
                Step::Done(Err(error)) => {
                    return Ok(Step::Done(Outcome::End(self.link_end(error))));
                }
            };
            // From here to the end of the iteration nothing is dropped half way.
            let step = match received {
                Received::Heartbeat(checkpoint) => {
                    self.heartbeat(ledger, &checkpoint, session).await
                }
                Received::Commits(commits) => self.iterate(ledger, &commits, session).await?,
            };
            if let Err(outcome) = step {
                return Ok(Step::Done(outcome));
            }
            if let Some(wanted) = &target {
                let now = self.context.current();
                let interval = self.config.pace.target_update_interval;
                if ledger.head().checkpoint.sequence >= wanted.checkpoint.sequence {
                    return Ok(Step::Done(Outcome::Reached));
                }
                if now.duration_since(target_asked).unwrap_or_default() >= interval {
                    target_asked = now;
                    target = self.ask_target(&session.link).await.ok().or(target);
                }
            }
        }
    }

    async fn heartbeat(
        &self,
        ledger: &Arc<Ledger<E>>,
        checkpoint: &SignedCheckpoint,
        session: &Arc<Session<E>>,
    ) -> Result<(), Outcome> {
        self.observe(checkpoint, &session.link).await.map_err(Outcome::End)?;
        ledger.resign(checkpoint.clone());
        Ok(())
    }

    /// One iteration: verifies, executes and adopts `commits`.
    async fn iterate(
        &self,
        ledger: &Arc<Ledger<E>>,
        commits: &[Commit],
        session: &Arc<Session<E>>,
    ) -> Result<Result<(), Outcome>, Fatal> {
        let started = self.context.current();
        let Some(newest) = commits.last() else { return Ok(Ok(())) };
        // The signatures between are implied by the last one's history only if every root is
        // compared, so each is verified; the last one also moves what is known.
        for commit in commits {
            if let Err(refusal) = self.replica.known.verify(&commit.checkpoint) {
                return Ok(Err(Outcome::End(self.refuse(&refusal, &session.link))));
            }
        }
        if let Err(end) = self.observe(&newest.checkpoint, &session.link).await {
            return Ok(Err(Outcome::End(end)));
        }
        let size_before = ledger.head().checkpoint.size;
        match follow::apply(ledger, commits).await {
            Ok(()) => {}
            Err(follow::Error::Ledger(error)) => return Err(error.into()),
            Err(follow::Error::ExecutionVersion(sequence)) => {
                tracing::info!(
                    sequence,
                    "a commit of another execution version: syncing the state"
                );
                return Ok(Err(Outcome::StateSync));
            }
            Err(follow::Error::DoesNotFollow(checkpoint)) => {
                let end = self.investigate(ledger, &checkpoint, &session.link).await;
                self.count_iteration("follow", "error");
                return Ok(Err(Outcome::End(end)));
            }
            Err(follow::Error::Link(error)) => {
                return Ok(Err(Outcome::End(self.link_end(error))));
            }
        }
        self.adopted(commits, size_before, started);
        Ok(Ok(()))
    }

    /// A commit that does not follow: did the server alter it, or the publisher sign a fork?
    async fn investigate(
        &self,
        ledger: &Arc<Ledger<E>>,
        offered: &SignedCheckpoint,
        link: &Arc<Link<E>>,
    ) -> End {
        if let Ok(Continuity::Broken { response }) = continuity::check(ledger, link, offered).await
        {
            return self.broken(ledger, offered, link, response);
        }
        self.replica.metrics.reject("commit_root");
        let text = "a commit does not lead from our state to the signed one";
        tracing::error!(sequence = offered.checkpoint.sequence, text);
        self.misbehaved(link, LinkError::Protocol(text))
    }

    fn broken(
        &self,
        ledger: &Arc<Ledger<E>>,
        offered: &SignedCheckpoint,
        link: &Arc<Link<E>>,
        response: Vec<u8>,
    ) -> End {
        let reason = "a longer history does not contain ours";
        self.replica.known.report(ledger.head(), offered.clone(), reason, Some(response));
        link.close(LinkError::Protocol("equivocation"));
        self.equivocation(reason.into())
    }

    fn count_iteration(&self, kind: &'static str, result: &'static str) {
        self.replica.metrics.iterations.get_or_create(&IterationLabel { kind, result }).inc();
    }

    /// Notes an advance by commits.
    fn adopted(&self, commits: &[Commit], size_before: u64, started: SystemTime) {
        let Some(newest) = commits.last() else { return };
        let now = self.context.current();
        let (now_ms, metrics) = (unix_ms(now), &self.replica.metrics);
        for commit in commits {
            let delay = now_ms.saturating_sub(commit.checkpoint.checkpoint.committed_at_ms);
            metrics.commit_to_apply.observe(delay as f64 / 1000.0);
        }
        // Every commit changes the root: its metadata is part of it.
        metrics.root_changes.inc_by(commits.len() as u64);
        self.report_iteration("follow", &newest.checkpoint, size_before, started);
    }

    /// Logs and counts an iteration that ended well.
    fn report_iteration(
        &self,
        kind: &'static str,
        adopted: &SignedCheckpoint,
        size_before: u64,
        started: SystemTime,
    ) {
        let elapsed = self.context.current().duration_since(started).unwrap_or_default();
        let (replica, metrics) = (&self.replica, &self.replica.metrics);
        let checkpoint = &adopted.checkpoint;
        let advanced = checkpoint.size.saturating_sub(size_before);
        self.count_iteration(kind, "ok");
        metrics
            .iteration_duration
            .get_or_create(&KindLabel { kind })
            .observe(elapsed.as_secs_f64());
        metrics.operations_applied.inc_by(advanced);
        replica.set_rate(advanced, elapsed);
        let iteration = replica.iterations.fetch_add(1, Ordering::Relaxed) + 1;
        replica.size.send_replace(checkpoint.size);
        tracing::info!(
            sync_iteration = iteration,
            kind,
            target_size = replica.known.newest().map_or(0, |known| known.checkpoint.size),
            database_ops = checkpoint.size,
            sequence = checkpoint.sequence,
            root = %checkpoint.root,
            duration_ms = elapsed.as_millis() as u64,
            "iteration"
        );
    }

    /// Builds a new generation; `Some` if this session cannot serve for it now.
    async fn state_sync(&mut self, session: &Arc<Session<E>>) -> Result<Step<Option<End>>, Fatal> {
        let started = self.context.current();
        let link = &session.link;
        let target = match self.or_stop(self.ask_target(link)).await {
            Step::Stop => return Ok(Step::Stop),
            Step::Done(Ok(target)) => target,
            Step::Done(Err(end)) => return Ok(Step::Done(Some(end))),
        };
        let old = self.replica.ledger.load_full();
        if let Some(end) = self.refuse_target(old.as_ref(), &target, link).await {
            return Ok(Step::Done(Some(end)));
        }
        self.replica.known.keep().await;
        self.replica.set_phase(Phase::StateSync, started);
        // Begun before the sync: the server keeps what the target needs, and tells of newer ones.
        let watching = self.watch_targets(&target, link).await;
        let source = self.source();
        let fetching = self.negotiate(&session.welcome);
        tracing::info!(
            target_size = target.checkpoint.size,
            root = %target.checkpoint.root,
            floor = target.checkpoint.floor,
            "state sync begins"
        );
        // Dropping a state sync half way is safe: it resumes in its generation.
        let mut stop = self.stop.clone();
        let result = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => None,
            result = state_sync::run(
                &self.context,
                &mut self.generations,
                &target,
                fetching,
                source,
                &self.replica.progress,
            ) => Some(result),
        };
        drop(watching);
        let ledger = match result {
            None => return Ok(Step::Stop),
            Some(Ok(ledger)) => Arc::new(ledger),
            Some(Err(error)) => return self.state_sync_failed(error),
        };
        self.adopt(old, ledger, started).await?;
        Ok(Step::Done(None))
    }

    /// How to fetch from a server: as configured, within the bounds that it named.
    fn negotiate(&self, welcome: &Welcome) -> state_sync::Config {
        let wanted = self.config.state_sync;
        let batch_max = NonZeroU64::new(welcome.operations_max).unwrap_or(NonZeroU64::MIN);
        let requests_max = usize::try_from(welcome.requests_max).unwrap_or(usize::MAX);
        let requests_max = NonZeroUsize::new(requests_max).unwrap_or(NonZeroUsize::MIN);
        let config = state_sync::Config {
            batch: wanted.batch.min(batch_max),
            outstanding: wanted.outstanding.min(requests_max),
        };
        if config != wanted {
            tracing::warn!(
                batch_size = config.batch,
                max_outstanding_requests = config.outstanding,
                "the server allows less than was configured"
            );
        }
        config
    }

    /// Why `target` may not replace what we have.
    async fn refuse_target(
        &self,
        old: Option<&Arc<Ledger<E>>>,
        target: &SignedCheckpoint,
        link: &Arc<Link<E>>,
    ) -> Option<End> {
        // Also without a state of our own: what was once known to be signed is never gone back on.
        let known = self.replica.known.newest().map_or(0, |known| known.checkpoint.sequence);
        if target.checkpoint.sequence < known {
            let text = format!("the server is behind commit {known}, which was seen before");
            return Some(End::Pause(Phase::Stalled("server_behind"), text));
        }
        let Some(ledger) = old else {
            let (age, skew) = (self.config.age_max, self.config.skew);
            let fresh = check_freshness(&target.checkpoint, self.context.current(), age, skew);
            let refusal = fresh.err()?;
            self.replica.metrics.reject(refusal.reason());
            return Some(End::Pause(Phase::Stalled("rejected"), refusal.to_string()));
        };
        if target.checkpoint.sequence <= ledger.head().checkpoint.sequence {
            let text = "the server is behind this replica".to_string();
            return Some(End::Pause(Phase::Stalled("server_behind"), text));
        }
        match continuity::check(ledger, link, target).await {
            Ok(Continuity::Proved) => None,
            Ok(Continuity::CannotBeProved) => {
                tracing::warn!(
                    size = ledger.head().checkpoint.size,
                    floor = target.checkpoint.floor,
                    "the history at this replica's size was pruned: rebuilding without a proof that it was only appended to"
                );
                None
            }
            Ok(Continuity::Broken { response }) => {
                Some(self.broken(ledger, target, link, response))
            }
            Err(continuity::Error::Link(error)) => Some(self.link_end(error)),
            Err(error @ (continuity::Error::WrongAnswer(_) | continuity::Error::Withheld(_))) => {
                self.replica.metrics.reject("boundary");
                link.close(LinkError::Protocol("wrong boundary"));
                Some(End::Pause(Phase::Refusing("rejected"), error.to_string()))
            }
            Err(error @ continuity::Error::Database(_)) => {
                Some(End::Pause(Phase::Stalled("rejected"), error.to_string()))
            }
        }
    }

    /// Learns of newer checkpoints while a state sync runs; ends when dropped.
    async fn watch_targets(
        &self,
        target: &SignedCheckpoint,
        link: &Arc<Link<E>>,
    ) -> Option<commonware_runtime::AbortOnDrop<()>> {
        let mut stream = link.watch(target.checkpoint.sequence).await.ok()?;
        let replica = self.replica.clone();
        let link = link.clone();
        let task = self.context.child("watch").spawn(move |context| async move {
            while let Ok(Response::Checkpoint(checkpoint)) = stream.next().await {
                if replica.known.observe(&checkpoint, context.current()).await.is_err() {
                    link.close(LinkError::Protocol("the server's checkpoint is not acceptable"));
                }
            }
        });
        Some(task.abort_on_drop())
    }

    fn source(&self) -> LinkSource<E> {
        let metrics = self.replica.metrics.clone();
        let reject = Arc::new(move || {
            metrics.reject("proof");
            tracing::error!("the proof of an answer does not hold");
        });
        LinkSource::new(
            self.context.child("source"),
            self.links.clone(),
            self.replica.progress.clone(),
            reject,
        )
    }

    fn state_sync_failed(&self, error: state_sync::Error) -> Result<Step<Option<End>>, Fatal> {
        self.count_iteration("state_sync", "error");
        let end = match error {
            state_sync::Error::Ledger(error) => return Err(error.into()),
            state_sync::Error::Pruned => {
                let text = "the target was pruned: a newer one is taken";
                End::Pause(Phase::Stalled("pruned"), text.into())
            }
            error @ state_sync::Error::NotTheSignedState(_) => {
                self.replica.metrics.reject("root");
                End::Pause(Phase::Refusing("rejected"), error.to_string())
            }
            error @ state_sync::Error::Cancelled => {
                End::Pause(Phase::Stalled("rejected"), error.to_string())
            }
        };
        Ok(Step::Done(Some(end)))
    }

    /// Serves the new generation and removes the old one.
    async fn adopt(
        &self,
        old: Option<Arc<Ledger<E>>>,
        ledger: Arc<Ledger<E>>,
        started: SystemTime,
    ) -> Result<(), Fatal> {
        let head = ledger.head();
        let resumed = self.replica.progress.resumed_at.load(Ordering::Relaxed);
        let resumed = resumed.min(head.checkpoint.size).saturating_sub(head.checkpoint.floor);
        self.replica.metrics.resumed_operations.inc_by(resumed);
        let size_before = old.as_ref().map_or(0, |old| old.head().checkpoint.size);
        self.replica.ledger.store(Some(ledger));
        self.replica.metrics.root_changes.inc();
        self.report_iteration("state_sync", &head, size_before, started);
        if let Some(old) = old {
            old.close().await;
            let family = self.replica.family;
            Generations::remove(&self.context, family, old.generation())
                .await
                .map_err(ledger::Error::from)?;
        }
        Ok(())
    }
}
