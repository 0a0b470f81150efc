//! The part of the loop that builds a new generation by state sync, and adopts it.

use super::{
    connection::Session,
    disk,
    judge::Standing,
    phase::{Phase, RefusalReason, StallReason},
    sync_loop::{End, Interrupt, SyncLoop},
};
use crate::{
    checkpoint::{Admission, SignedCheckpoint, check_freshness},
    database::Generations,
    ledger::{self, Ledger},
    link::{Link, LinkError},
    replicate::{LinkSource, state_sync},
    runtime::Runtime,
    wire::{Response, Welcome},
};
use std::{
    num::{NonZeroU64, NonZeroUsize},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tracing::Instrument as _;

impl<E: Runtime> SyncLoop<E> {
    /// An iteration that builds a new generation.
    pub(super) async fn state_sync(&mut self, session: &Arc<Session<E>>) -> Result<(), Interrupt> {
        let started = self.context.monotonic();
        let link = &session.link;
        let (target, standing) = self.or_stop(self.ask_target(link)).await??;
        let old = self.replica.ledger.load_full();
        self.check_target(old.as_ref(), &target, standing)?;
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
        let span = tracing::info_span!(
            "client.state.sync",
            size = target.checkpoint.size,
            floor = target.checkpoint.floor,
        );
        let mut stop = self.stop.clone();
        let out_of_room = disk::out_of_room(self.context.child("room"), self.replica.clone());
        let result = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return Err(Interrupt::Stop),
            reason = out_of_room => return Err(End::no_storage(reason).into()),
            result = state_sync::run(
                &self.context,
                &mut self.generations,
                &target,
                fetching,
                source,
                &self.replica.progress,
            )
            .instrument(span) => result,
        };
        let ledger = result.map_err(|error| self.state_sync_failed(error))?;
        *session.held.lock() = watching;
        self.adopt(old, Arc::new(ledger), started).await
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
            mode: wanted.mode,
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

    /// Whether `target` may replace what we have.
    fn check_target(
        &self,
        old: Option<&Arc<Ledger<E>>>,
        target: &SignedCheckpoint,
        standing: Standing,
    ) -> Result<(), End> {
        let known = self.replica.known.newest().map_or(0, |known| known.checkpoint.sequence);
        let own = old.map(|ledger| ledger.head().checkpoint.sequence);
        let sequence = target.checkpoint.sequence;
        // Also without a state of our own: what was once known to be signed is never gone back on.
        if standing == Standing::Behind || own.is_some_and(|own| sequence <= own) {
            let text = format!("the server is behind commit {known}, which was seen before");
            return Err(End::Pause(Phase::Stalled(StallReason::ServerBehind), text));
        }
        if old.is_none() {
            let (age, skew) = (self.config.age_max, self.config.skew);
            let fresh = check_freshness(&target.checkpoint, self.context.current(), age, skew);
            if let Err(refusal) = fresh {
                self.replica.metrics.reject(refusal.reason());
                return Err(End::Pause(Phase::Stalled(StallReason::Clock), refusal.to_string()));
            }
        }
        if standing == Standing::Unproved {
            tracing::warn!(
                known,
                floor = target.checkpoint.floor,
                "the history at this replica's state was pruned: rebuilding without a proof that it was only appended to"
            );
        }
        Ok(())
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
                // Later ones are proved when they are needed; until then they tell how far behind
                // the replica is.
                let now = context.moment();
                match replica.known.admit(&checkpoint, None) {
                    Ok(Admission::Newer) => replica.known.claim(&checkpoint, now),
                    Ok(Admission::Resigned | Admission::Stale) => {
                        replica.known.take(&checkpoint, now).await;
                    }
                    Err(_) => {
                        let text = "the server's checkpoint is not acceptable";
                        link.close(LinkError::Protocol(text));
                    }
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

    fn state_sync_failed(&self, error: state_sync::Error) -> Interrupt {
        self.count_iteration("state_sync", "error");
        let end = match error {
            state_sync::Error::Ledger(error) if disk::is_passing(&error) => {
                self.replica.disk.errors.count("commit");
                End::no_storage(error.to_string())
            }
            state_sync::Error::Ledger(error) => return error.into(),
            state_sync::Error::Pruned => {
                let text = "the target was pruned: a newer one is taken";
                End::Pause(Phase::Stalled(StallReason::Pruned), text.into())
            }
            error @ state_sync::Error::NotTheSignedState(_) => {
                self.replica.metrics.reject("root");
                End::Pause(Phase::Refusing(RefusalReason::Rejected), error.to_string())
            }
            error @ state_sync::Error::Cancelled => {
                End::Pause(Phase::Stalled(StallReason::Rejected), error.to_string())
            }
        };
        end.into()
    }

    /// Serves the new generation and removes every other one.
    async fn adopt(
        &mut self,
        old: Option<Arc<Ledger<E>>>,
        ledger: Arc<Ledger<E>>,
        started: Duration,
    ) -> Result<(), Interrupt> {
        let head = ledger.head();
        self.replica.known.adopted(std::iter::once(&head), self.context.moment()).await;
        let resumed = self.replica.progress.resumed_at.load(Ordering::Relaxed);
        let resumed = resumed.min(head.checkpoint.size).saturating_sub(head.checkpoint.floor);
        self.replica.metrics.resumed_operations.inc_by(resumed);
        let size_before = old.as_ref().map_or(0, |old| old.head().checkpoint.size);
        self.replica.ledger.store(Some(ledger));
        self.replica.metrics.root_changes.inc();
        self.report_iteration("state_sync", &head, size_before, started);
        match old {
            Some(old) if old.is_exporting() => self.retire(old),
            Some(old) => old.close().await,
            None => {}
        }
        if let Some(history) = self.replica.history.swap(None) {
            history.close().await;
        }
        // Also the generation that could not be opened, where there was one.
        let family = self.replica.family;
        match self.generations.sweep(&self.context, family).await.map_err(ledger::Error::from) {
            Err(error) if disk::is_passing(&error) => {
                self.replica.disk.errors.count("maintain");
                tracing::warn!(%error, "the old generation cannot be removed: the next start does it");
            }
            result => result?,
        }
        Ok(())
    }

    /// Keeps a generation that was replaced until the export that reads it has ended; exports have
    /// a longest time. What a crash leaves of it is swept at the next opening.
    fn retire(&self, old: Arc<Ledger<E>>) {
        let (generation, family) = (old.generation(), self.replica.family);
        let keep = self.generations.keep(generation);
        tracing::info!(generation, "the old generation is kept for an export that is running");
        self.context.child("retire").spawn(move |context| async move {
            old.exports_ended().await;
            old.close().await;
            match Generations::remove(&context, family, generation).await {
                Ok(()) => tracing::info!(generation, "the old generation was removed"),
                Err(error) => tracing::warn!(%error, generation, "the old generation stays until the next start"),
            }
            drop(keep);
        });
    }
}
