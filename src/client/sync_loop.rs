//! The loop of a replica: follow where the log reaches back, state sync where it does not.

use super::{
    connection::{Backoff, Session},
    disk::{self, COMMIT_ROOM},
    judge::{Standing, Unacceptable},
    metrics::{IterationLabel, KindLabel},
    phase::{Fatal, Phase, RefusalReason, StallReason},
    state::ReplicaState,
};
use crate::watch;
use crate::{
    checkpoint::{Refusal, SignedCheckpoint},
    database::{EXECUTION_VERSION, Generations},
    ledger::{self, History, Ledger},
    link::{Link, LinkError},
    replicate::{continuity::Continuity, state_sync},
    runtime::Runtime,
    wire::{Code, Request, Response},
};
use std::{
    convert::Infallible,
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::mpsc;
use tracing::{Instrument as _, Span, field::Empty};

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

impl Pace {
    /// Commits are followed as they come.
    pub const PUSH: Self = Self {
        push: true,
        sync_interval: Duration::from_secs(10),
        target_update_interval: Duration::from_secs(1),
    };
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

/// Why the process has to end: its own storage failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageFailure {
    /// Our own storage.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// Our own storage, and trying again in this process does not help.
    #[error(transparent)]
    Final(ledger::Error),
}

/// Why one session ended, short of the process.
pub(super) enum End {
    /// The connection is gone; another one will come.
    Disconnected,
    /// The server cannot or may not serve us now.
    Pause(Phase, String),
}

impl End {
    /// Our own storage cannot take anything now.
    pub(super) const fn no_storage(reason: String) -> Self {
        Self::Pause(Phase::Stalled(StallReason::Storage), reason)
    }
}

/// Why work is broken off.
pub(super) enum Interrupt {
    /// The process drains.
    Stop,
    /// The session is over, or cannot serve for now.
    Session(End),
    /// The storage failed.
    Storage(StorageFailure),
}

impl From<End> for Interrupt {
    fn from(end: End) -> Self {
        Self::Session(end)
    }
}

impl From<StorageFailure> for Interrupt {
    fn from(error: StorageFailure) -> Self {
        Self::Storage(error)
    }
}

impl From<ledger::Error> for Interrupt {
    fn from(error: ledger::Error) -> Self {
        Self::Storage(error.into())
    }
}

/// What following came to.
pub(super) enum Outcome {
    /// The target was reached (poll).
    Reached,
    /// The log does not lead there: the state has to be fetched.
    StateSync,
}

/// The loop's state.
pub struct SyncLoop<E: Runtime> {
    /// The runtime.
    pub context: E,
    /// Configuration.
    pub config: Config,
    /// Shared state.
    pub replica: Arc<ReplicaState<E>>,
    /// Generations.
    pub generations: Generations<E>,
    /// Sessions from the connection task.
    pub sessions: watch::Receiver<Option<Arc<Session<E>>>>,
    /// Their links.
    pub links: watch::Receiver<Option<Arc<Link<E>>>>,
    /// Where an equivocation is told.
    pub fatal: mpsc::Sender<Fatal>,
    /// Set when the process drains: the loop ends between two commits, never within one.
    pub stop: watch::Receiver<bool>,
}

impl<E: Runtime> SyncLoop<E> {
    /// Runs until told to stop, or until the storage fails.
    pub async fn run(mut self) -> Result<(), StorageFailure> {
        let mut backoff = Backoff::default();
        loop {
            let Ok(session) = self.session().await else { return self.finish().await };
            let before = self.replica.head().map(|head| head.checkpoint.sequence);
            let Err(interrupt) = self.work(&session).await;
            let end = match interrupt {
                Interrupt::Stop => return self.finish().await,
                Interrupt::Session(end) => end,
                Interrupt::Storage(StorageFailure::Ledger(error)) if disk::is_passing(&error) => {
                    self.replica.disk.errors.count("commit");
                    End::no_storage(error.to_string())
                }
                Interrupt::Storage(error) => return Err(error),
            };
            if self.replica.head().map(|head| head.checkpoint.sequence) != before {
                backoff.reset();
            }
            if let End::Pause(phase, error) = end {
                tracing::warn!(reason = error, "cannot advance");
                self.replica.set_phase(phase, self.context.monotonic());
                self.replica.set_error(Some(error));
            }
            let pause = backoff.next(&mut self.context);
            let sleep = self.context.sleep(pause);
            if self.or_stop(sleep).await.is_err() {
                return self.finish().await;
            }
        }
    }

    /// Awaits `work` unless the process drains first. Only for what may be dropped half way.
    pub(super) async fn or_stop<T>(&self, work: impl Future<Output = T>) -> Result<T, Interrupt> {
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => Err(Interrupt::Stop),
            output = work => Ok(output),
        }
    }

    /// The session, once there is one.
    async fn session(&self) -> Result<Arc<Session<E>>, Interrupt> {
        let mut sessions = self.sessions.clone();
        loop {
            let current = sessions.borrow_and_update().clone();
            if let Some(session) = current.filter(|session| !session.link.is_closed()) {
                return Ok(session);
            }
            // Without the task that connects there will be none.
            self.or_stop(sessions.changed()).await?.map_err(|_| Interrupt::Stop)?;
        }
    }

    /// Makes what was adopted durable.
    async fn finish(&self) -> Result<(), StorageFailure> {
        self.replica.known.keep().await;
        let Some(ledger) = self.replica.ledger.load_full() else { return Ok(()) };
        match ledger.sync().await {
            Err(error) if disk::is_passing(&error) => {
                // The log has what was verified; the next start executes it again.
                tracing::warn!(%error, "the database cannot be made durable");
                Ok(())
            }
            result => Ok(result?),
        }
    }

    /// Whether anything can be written now. A ledger that failed is opened again.
    async fn check_storage(&self) -> Result<(), Interrupt> {
        if let Some(ledger) = self.replica.ledger.load_full()
            && !ledger.is_whole().await
        {
            // A final error ends the process, whatever it is.
            let opened = self.replica.reopen(&self.context, &ledger).await;
            let opened = opened.map_err(StorageFailure::Final)?;
            opened.map_err(|error| End::no_storage(error.to_string()))?;
        }
        Ok(self.replica.disk.check(COMMIT_ROOM).map_err(End::no_storage)?)
    }

    /// Whether what `ledger` is given now can be written.
    pub(super) async fn may_write(&self, ledger: &Arc<Ledger<E>>) -> Result<(), End> {
        let current = self.replica.ledger.load_full();
        let is_current = current.is_some_and(|current| Arc::ptr_eq(&current, ledger));
        if !is_current || !ledger.is_whole().await {
            return Err(End::no_storage("the storage failed and is opened again".into()));
        }
        self.replica.disk.check(COMMIT_ROOM).map_err(End::no_storage)
    }

    /// Works with one session until something breaks it off.
    async fn work(&mut self, session: &Arc<Session<E>>) -> Result<Infallible, Interrupt> {
        loop {
            self.check_storage().await?;
            let outcome = match self.replica.ledger.load_full() {
                Some(ledger) => self.advance(&ledger, session).await?,
                None => Outcome::StateSync,
            };
            match outcome {
                Outcome::Reached => {
                    self.release(session);
                    self.replica.set_phase(Phase::Polling, self.context.monotonic());
                    self.or_stop(self.context.sleep(self.config.pace.sync_interval)).await?;
                    if session.link.is_closed() {
                        return Err(End::Disconnected.into());
                    }
                }
                Outcome::StateSync => {
                    let span = tracing::info_span!(
                        "client.iteration",
                        kind = "state_sync",
                        size = Empty,
                        sequence = Empty,
                    );
                    self.state_sync(session).instrument(span).await?;
                }
            }
        }
    }

    /// Follows the log, for ever (push) or up to the newest checkpoint (poll).
    async fn advance(
        &self,
        ledger: &Arc<Ledger<E>>,
        session: &Arc<Session<E>>,
    ) -> Result<Outcome, Interrupt> {
        if session.welcome.execution != EXECUTION_VERSION {
            return self.advance_across_versions(ledger, session).await;
        }
        let target = if self.config.pace.push {
            None
        } else {
            Some(self.or_stop(self.ask_target(&session.link)).await??.0)
        };
        if target.is_some() {
            self.resign(ledger);
        }
        let head = ledger.head().checkpoint;
        if target.as_ref().is_some_and(|target| target.checkpoint.sequence <= head.sequence) {
            return Ok(Outcome::Reached);
        }
        self.follow(ledger, session, target).await
    }

    /// With a server of another execution version, new states are synced as they come.
    async fn advance_across_versions(
        &self,
        ledger: &Arc<Ledger<E>>,
        session: &Arc<Session<E>>,
    ) -> Result<Outcome, Interrupt> {
        let (target, _) = self.or_stop(self.ask_target(&session.link)).await??;
        let is_behind = target.checkpoint.sequence > ledger.head().checkpoint.sequence;
        Ok(if is_behind { Outcome::StateSync } else { Outcome::Reached })
    }

    /// Asks for the newest checkpoint and judges it.
    pub(super) async fn ask_target(
        &self,
        link: &Arc<Link<E>>,
    ) -> Result<(SignedCheckpoint, Standing), End> {
        match link.request(Request::Checkpoint).await {
            Ok(Response::Checkpoint(checkpoint)) => {
                let standing = self.judge(&checkpoint, link).await?;
                Ok((*checkpoint, standing))
            }
            Ok(_) => Err(self.misbehaved(link, LinkError::Protocol("unexpected answer"))),
            Err(error) => Err(self.link_end(error)),
        }
    }

    /// Judges a checkpoint; one that is not acceptable ends the connection.
    pub(super) async fn judge(
        &self,
        checkpoint: &SignedCheckpoint,
        link: &Arc<Link<E>>,
    ) -> Result<Standing, End> {
        let judged = self.replica.judge(checkpoint, link, self.context.moment()).await;
        judged.map_err(|error| self.unacceptable(error, link))
    }

    pub(super) fn unacceptable(&self, error: Unacceptable, link: &Arc<Link<E>>) -> End {
        match error {
            Unacceptable::Refused(refusal) => self.refuse(&refusal, link),
            Unacceptable::NotProved(text) => {
                link.close(LinkError::Protocol("the server does not prove its history"));
                End::Pause(Phase::Refusing(RefusalReason::Rejected), text)
            }
            Unacceptable::Storage(text) => End::no_storage(text),
            Unacceptable::Link(error) => self.link_end(error),
        }
    }

    pub(super) fn refuse(&self, refusal: &Refusal, link: &Arc<Link<E>>) -> End {
        link.close(LinkError::Protocol("the server's checkpoint is not acceptable"));
        if matches!(refusal, Refusal::Equivocation(_)) {
            // Whoever runs the replica serves on, or exits if that is configured.
            let _ = self.fatal.try_send(Fatal::Equivocation(refusal.clone()));
        }
        End::Pause(Phase::Refusing(refusal.into()), refusal.to_string())
    }

    /// The server did what no honest one does.
    pub(super) fn misbehaved(&self, link: &Arc<Link<E>>, error: LinkError) -> End {
        link.close(error.clone());
        End::Pause(Phase::Refusing(RefusalReason::Rejected), error.to_string())
    }

    pub(super) fn link_end(&self, error: LinkError) -> End {
        match error {
            LinkError::Refused(refused) if refused.code == Code::Ahead => {
                End::Pause(Phase::Stalled(StallReason::ServerBehind), refused.to_string())
            }
            LinkError::Refused(refused) => {
                End::Pause(Phase::Stalled(StallReason::Rejected), refused.to_string())
            }
            error => {
                self.replica.set_error(Some(error.to_string()));
                End::Disconnected
            }
        }
    }

    /// A commit that does not follow: did the server alter it, or the publisher sign a fork?
    pub(super) async fn investigate(
        &self,
        ledger: &Arc<Ledger<E>>,
        offered: &SignedCheckpoint,
        link: &Arc<Link<E>>,
    ) -> End {
        let (replica, head) = (&self.replica, ledger.head());
        if let Ok(Continuity::Broken(found)) = replica.contains(&head, offered, link).await {
            return self.refuse(&replica.convict(head, *found), link);
        }
        if let Err(refusal) = replica.judge_older(offered).await {
            return self.refuse(&refusal, link);
        }
        replica.metrics.reject("commit_root");
        let text = "a commit does not lead from our state to the signed one";
        tracing::error!(sequence = offered.checkpoint.sequence, text);
        self.misbehaved(link, LinkError::Protocol(text))
    }

    pub(super) fn count_iteration(&self, kind: &'static str, result: &'static str) {
        self.replica.metrics.iterations.get_or_create(&IterationLabel { kind, result }).inc();
    }

    /// Logs and counts an iteration that ended well.
    pub(super) fn report_iteration(
        &self,
        kind: &'static str,
        adopted: &SignedCheckpoint,
        size_before: u64,
        started: Duration,
    ) {
        let elapsed = self.context.monotonic().saturating_sub(started);
        let (replica, metrics) = (&self.replica, &self.replica.metrics);
        let checkpoint = &adopted.checkpoint;
        let advanced = checkpoint.size.saturating_sub(size_before);
        let span = Span::current();
        span.record("size", checkpoint.size);
        span.record("sequence", checkpoint.sequence);
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
            target_size = replica.known.target().map_or(0, |known| known.checkpoint.size),
            database_ops = checkpoint.size,
            sequence = checkpoint.sequence,
            root = %checkpoint.root,
            duration_ms = elapsed.as_millis() as u64,
            "iteration"
        );
    }
}
