//! What a session sends by itself: commits as they come, or checkpoints while a state sync runs.

use super::session::{Credit, Session};
use crate::{
    checkpoint::SignedCheckpoint,
    commit_log,
    link::credit,
    runtime::Runtime,
    serve::limits,
    wire::{COMMIT_RECORD_BYTES_MAX, Code, Refused, Request, Response},
};
use std::{sync::Arc, time::Duration};

/// Shortest time between two checkpoints sent to a client in state sync.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

impl<E: Runtime> Session<E> {
    /// Sends what a stream is about, until it ends.
    pub(super) async fn stream(&self, context: &E, id: u64, request: Request, credit: Arc<Credit>) {
        let (name, started) = (request.as_str(), context.monotonic());
        let result = match request {
            Request::Watch { target } => self.watch(context, id, target).await,
            Request::Follow { sequence, .. } => {
                self.shared.metrics.followers.inc();
                // Counted down even if this task is aborted.
                let _count = Defer(|| {
                    self.shared.metrics.followers.dec();
                });
                self.follow(context, id, sequence, &credit).await
            }
            Request::Checkpoint | Request::CheckpointAt { .. } | Request::Fetch(_) => Ok(()),
        };
        self.count(context, name, started, result.as_ref().err());
        if let Err(refused) = result {
            self.send_small(context, id, Response::Refused(refused)).await;
        }
    }

    /// Sends every commit after `sequence`, and heartbeats while there is none.
    async fn follow(
        &self,
        context: &E,
        id: u64,
        sequence: u64,
        credit: &Credit,
    ) -> Result<(), Refused> {
        let log = self.shared.ledger.log();
        let (mut bounds, mut heads) = (log.subscribe(), self.shared.ledger.subscribe());
        let mut last = sequence;
        // Of the signature that was sent last. A later one may name an earlier time.
        let mut signed_at_ms = None;
        loop {
            bounds.borrow_and_update();
            heads.borrow_and_update();
            while last < log.bounds().last {
                credit.allows().await;
                // Before it is read: followers that do not read hold no commits in memory.
                let room = self.room(context, COMMIT_RECORD_BYTES_MAX).await;
                let commit = log.read(last + 1).await.map_err(|error| self.refuse_read(error))?;
                last = commit.sequence();
                signed_at_ms = Some(commit.checkpoint.checkpoint.signed_at_ms);
                let trace = self.shared.ledger.trace_of(last);
                let response = Response::Commit { commit: Box::new(commit), trace };
                credit.balance.spend(credit::cost(&response));
                if !self.send(id, response, room).await {
                    return Ok(());
                }
            }
            if last > log.bounds().last {
                return Err(Refused::new(
                    Code::Ahead,
                    format!("the log ends at {}", log.bounds().last),
                ));
            }
            let head = self.shared.ledger.head();
            let signed = Some(head.checkpoint.signed_at_ms);
            if head.checkpoint.sequence == last && signed != signed_at_ms {
                if !credit.balance.allows() {
                    // By then there may be commits to send instead.
                    credit.allows().await;
                    continue;
                }
                signed_at_ms = signed;
                let response = Response::Checkpoint(Box::new(head));
                credit.balance.spend(credit::cost(&response));
                if !self.send_small(context, id, response).await {
                    return Ok(());
                }
            }
            let changed = tokio::select! {
                biased;
                changed = bounds.changed() => changed,
                changed = heads.changed() => changed,
            };
            if changed.is_err() {
                return Err(Refused::new(Code::Draining, "the server is stopping"));
            }
        }
    }

    pub(super) fn refuse_read(&self, error: commit_log::Error) -> Refused {
        match error {
            commit_log::Error::Trimmed { first } => {
                Refused::new(Code::Pruned, format!("the log begins at sequence {first}"))
            }
            commit_log::Error::Ahead { last } => {
                Refused::new(Code::Ahead, format!("the log ends at sequence {last}"))
            }
            error => {
                self.shared.metrics.storage_errors.count("read");
                tracing::error!(%error, "cannot read the commit log");
                Refused::later(Code::Internal, "the store failed", limits::RETRY_AFTER)
            }
        }
    }

    /// Sends newer checkpoints, and holds what the state of `target` needs.
    async fn watch(&self, context: &E, id: u64, target: u64) -> Result<(), Refused> {
        let commit = self.shared.ledger.log().read(target).await;
        let commit = commit.map_err(|error| self.refuse_read(error))?;
        let hold = self.shared.ledger.hold(&commit.checkpoint);
        let mut heads = self.shared.ledger.subscribe();
        loop {
            if hold.is_lapsed() {
                let text = "the state kept too many operations from being pruned: take a newer one";
                return Err(Refused::new(Code::Pruned, text));
            }
            let head: SignedCheckpoint = heads.borrow_and_update().clone();
            // A slow reader skips checkpoints: only the newest is worth sending.
            if !self.send_small(context, id, Response::Checkpoint(Box::new(head))).await {
                return Ok(());
            }
            context.sleep(WATCH_INTERVAL).await;
            if heads.changed().await.is_err() {
                return Err(Refused::new(Code::Draining, "the server is stopping"));
            }
        }
    }
}

/// Runs a closure when dropped.
struct Defer<F: FnMut()>(F);

impl<F: FnMut()> Drop for Defer<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
