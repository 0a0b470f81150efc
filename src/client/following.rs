//! The part of the loop that follows the server's log: an iteration for what was received together.

use super::{
    connection::Session,
    phase::Phase,
    sync_loop::{End, Interrupt, Outcome, SyncLoop},
};
use crate::{
    checkpoint::{SignedCheckpoint, unix_ms},
    commit_log::Commit,
    ledger::Ledger,
    link::LinkError,
    replicate::follow::{self, Received},
    runtime::Runtime,
    telemetry::context::{TraceContext, TraceContextExt as _},
    wire::Code,
};
use std::{sync::Arc, time::Duration};
use tracing::{Instrument as _, field::Empty};

impl<E: Runtime> SyncLoop<E> {
    /// Follows the log until the session ends, or `target` is reached.
    pub(super) async fn follow(
        &self,
        ledger: &Arc<Ledger<E>>,
        session: &Arc<Session<E>>,
        mut target: Option<SignedCheckpoint>,
    ) -> Result<Outcome, Interrupt> {
        let sequence = ledger.head().checkpoint.sequence;
        let mut stream = match session.link.follow(sequence).await {
            Ok(stream) => stream,
            Err(error) => return Err(self.stream_end(error, session).into()),
        };
        // What was refused stays refused until something was accepted: a state that flaps with each
        // attempt is seen by nobody.
        if !matches!(self.replica.phase(), Phase::Refusing(_) | Phase::Stalled(_)) {
            self.replica.set_phase(Phase::Following, self.context.monotonic());
        }
        let mut target_asked = self.context.monotonic();
        loop {
            let received = match self.or_stop(follow::receive(&mut stream)).await? {
                Ok(received) => received,
                Err(LinkError::Refused(refused)) if refused.code == Code::Pruned => {
                    return Ok(Outcome::StateSync);
                }
                Err(error @ LinkError::Protocol(_)) => {
                    return Err(self.misbehaved(&session.link, error).into());
                }
                Err(error) => return Err(self.stream_end(error, session).into()),
            };
            // Before anything is written: what fails half way costs the reads.
            self.may_write(ledger).await?;
            // From here to the end of the iteration nothing is dropped half way.
            match received {
                Received::Heartbeat(checkpoint) => {
                    self.judge(&checkpoint, &session.link).await?;
                    self.resign(ledger);
                }
                Received::Commits(commits, traces) => {
                    let span = tracing::info_span!(
                        "client.iteration",
                        kind = "follow",
                        commits = commits.len(),
                        size = Empty,
                        sequence = Empty,
                    );
                    let iterating = self.iterate(ledger, &commits, &traces, session);
                    if let Some(outcome) = iterating.instrument(span).await? {
                        return Ok(outcome);
                    }
                }
            }
            self.replica.set_phase(Phase::Following, self.context.monotonic());
            self.release(session);
            if let Some(wanted) = &target {
                let now = self.context.monotonic();
                let interval = self.config.pace.target_update_interval;
                if ledger.head().checkpoint.sequence >= wanted.checkpoint.sequence {
                    return Ok(Outcome::Reached);
                }
                if now.saturating_sub(target_asked) >= interval {
                    target_asked = now;
                    let asked = self.ask_target(&session.link).await.ok();
                    target = asked.map(|(target, _)| target).or(target);
                }
            }
        }
    }

    /// The end of a stream. A server that has less than the replica is at may have forgotten what it signed: it is greeted
    /// again, because since the last greeting the replica may have advanced.
    fn stream_end(&self, error: LinkError, session: &Session<E>) -> End {
        let is_behind =
            matches!(&error, LinkError::Refused(refused) if refused.code == Code::Ahead);
        let end = self.link_end(error);
        if is_behind {
            session.link.close(LinkError::Closed);
        }
        end
    }

    /// Ends the watch of a state sync once the replica has caught up from what it adopted.
    pub(super) fn release(&self, session: &Session<E>) {
        if self.replica.lag_operations() == 0 {
            session.held.lock().take();
        }
    }

    /// Serves the state with the best signature that is known of it.
    pub(super) fn resign(&self, ledger: &Ledger<E>) {
        if let Some(newest) = self.replica.known.newest() {
            ledger.resign(newest);
        }
    }

    /// One iteration: verifies, executes and adopts `commits`. `Some` if they do not lead on.
    async fn iterate(
        &self,
        ledger: &Arc<Ledger<E>>,
        commits: &[Commit],
        traces: &[TraceContext],
        session: &Arc<Session<E>>,
    ) -> Result<Option<Outcome>, Interrupt> {
        let started = self.context.monotonic();
        let Some(newest) = commits.last() else { return Ok(None) };
        // Each state is verified and compared with what is known, not only the last one: two
        // signatures that contradict each other may be anywhere among them.
        let head = ledger.head();
        for commit in commits {
            if self.replica.known.is_of_a_predecessor(&commit.checkpoint) {
                tracing::info!(
                    sequence = commit.sequence(),
                    "a commit from before the trusted publisher keys: syncing the state"
                );
                return Ok(Some(Outcome::StateSync));
            }
            if let Err(refusal) = self.replica.known.admit(&commit.checkpoint, Some(&head)) {
                return Err(self.refuse(&refusal, &session.link).into());
            }
        }
        let size_before = head.checkpoint.size;
        // The trace of an iteration is the replica's own; what made the commits is linked.
        let span = tracing::info_span!("client.commit.apply", commits = commits.len());
        traces.iter().for_each(|trace| trace.link(&span));
        match follow::apply(ledger, commits).instrument(span).await {
            Ok(()) => {}
            Err(follow::Error::Ledger(error)) => return Err(error.into()),
            Err(follow::Error::ExecutionVersion(sequence)) => {
                tracing::info!(
                    sequence,
                    "a commit of another execution version: syncing the state"
                );
                return Ok(Some(Outcome::StateSync));
            }
            Err(follow::Error::DoesNotFollow(checkpoint)) => {
                let end = self.investigate(ledger, &checkpoint, &session.link).await;
                self.count_iteration("follow", "error");
                return Err(end.into());
            }
            Err(follow::Error::Link(error)) => {
                return Err(self.link_end(error).into());
            }
        }
        let states = commits.iter().map(|commit| &commit.checkpoint);
        self.replica.known.adopted(states, self.context.moment()).await;
        self.adopted(newest, commits, size_before, started);
        Ok(None)
    }

    /// Notes an advance by commits.
    fn adopted(&self, newest: &Commit, commits: &[Commit], size_before: u64, started: Duration) {
        let now_ms = unix_ms(self.context.current());
        let metrics = &self.replica.metrics;
        for commit in commits {
            let delay = now_ms.saturating_sub(commit.checkpoint.checkpoint.committed_at_ms);
            metrics.commit_to_apply.observe(delay as f64 / 1000.0);
        }
        // Every commit changes the root: its metadata is part of it.
        metrics.root_changes.inc_by(commits.len() as u64);
        self.report_iteration("follow", &newest.checkpoint, size_before, started);
    }
}
