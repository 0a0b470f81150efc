//! The newest checkpoint known, and what happens to one that contradicts it.

use super::metrics::Metrics;
use crate::{
    checkpoint::{
        Admission, Evidence, Policy, Refusal, RotationStore, Rotations, SignedCheckpoint, Store,
    },
    runtime::Runtime,
};
use arc_swap::ArcSwap;
use commonware_utils::sync::{AsyncMutex, Mutex};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;

/// How often the newest checkpoint is written down while commits come (each of which the log
/// keeps anyway).
const KEEP_INTERVAL: Duration = Duration::from_secs(5);

/// What the replica knows of the publisher's newest state.
pub struct Known<E: Runtime> {
    policy: ArcSwap<Policy>,
    newest: watch::Sender<Option<SignedCheckpoint>>,
    store: AsyncMutex<Store<E>>,
    rotations: AsyncMutex<Option<RotationStore<E>>>,
    kept_at: Mutex<SystemTime>,
    directory: PathBuf,
    metrics: Arc<Metrics>,
}

impl<E: Runtime> Known<E> {
    /// Begins with what the store and the replica's own state say.
    pub fn new(
        policy: Policy,
        store: Store<E>,
        rotations: RotationStore<E>,
        head: Option<&SignedCheckpoint>,
        directory: PathBuf,
        metrics: Arc<Metrics>,
    ) -> Self {
        let kept = store.newest().filter(|kept| policy.verify(kept).is_ok());
        let sequence = |signed: &&SignedCheckpoint| {
            (signed.checkpoint.sequence, signed.checkpoint.signed_at_ms)
        };
        let newest = kept.into_iter().chain(head).max_by_key(sequence).cloned();
        Self {
            policy: ArcSwap::from_pointee(policy),
            newest: watch::Sender::new(newest),
            store: AsyncMutex::new(store),
            rotations: AsyncMutex::new(Some(rotations)),
            kept_at: Mutex::new(SystemTime::UNIX_EPOCH),
            directory,
            metrics,
        }
    }

    /// The newest checkpoint verified so far.
    pub fn newest(&self) -> Option<SignedCheckpoint> {
        self.newest.borrow().clone()
    }

    /// Verifies `signed` and takes it if it is newer. Two states for one sequence are evidence.
    pub async fn observe(
        &self,
        signed: &SignedCheckpoint,
        now: SystemTime,
    ) -> Result<Admission, Refusal> {
        let newest = self.newest();
        let admission = match self.policy.load().admit(signed, newest.as_ref()) {
            Ok(admission) => admission,
            Err(refusal) => {
                self.metrics.reject(refusal.reason());
                if let (Refusal::Equivocation(reason), Some(known)) = (&refusal, newest) {
                    self.report(known, signed.clone(), reason, None);
                }
                return Err(refusal);
            }
        };
        if admission != Admission::Stale {
            self.newest.send_replace(Some(signed.clone()));
            let due = now >= *self.kept_at.lock() + KEEP_INTERVAL;
            if due {
                *self.kept_at.lock() = now;
                self.keep().await;
            }
        }
        Ok(admission)
    }

    /// Verifies `signed` on its own, as one of a series that leads to what is known.
    pub fn verify(&self, signed: &SignedCheckpoint) -> Result<(), Refusal> {
        let verified = self.policy.load().verify(signed);
        verified.inspect_err(|refusal| self.metrics.reject(refusal.reason()))
    }

    /// How the trusted keys followed each other, as far as it was learned.
    pub fn rotations(&self) -> Rotations {
        self.policy.load().rotations.clone()
    }

    /// Follows the trusted keys along the chain that a server shows.
    pub async fn learn(&self, offered: &Rotations) -> Result<(), Refusal> {
        let mut policy = Policy::clone(&self.policy.load());
        match policy.learn(offered) {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(refusal) => {
                self.metrics.reject(refusal.reason());
                return Err(refusal);
            }
        }
        if let Some(newest) = policy.rotations.0.last() {
            tracing::warn!(
                from = newest.from,
                retired = %newest.retired,
                successor = %newest.successor,
                "the publisher key handed over to its successor: name that in --trusted-key"
            );
        }
        // Durable first: a key that was retired once must be so after a restart, too.
        let mut store = self.rotations.lock().await;
        if let Some(open) = store.take() {
            match open.keep(&policy.rotations).await {
                Ok(kept) => *store = Some(kept),
                Err(error) => tracing::error!(%error, "cannot write down the retired keys"),
            }
        }
        self.policy.store(Arc::new(policy));
        Ok(())
    }

    /// Makes the newest checkpoint durable.
    pub async fn keep(&self) {
        let Some(newest) = self.newest() else { return };
        if let Err(error) = self.store.lock().await.keep(&newest).await {
            tracing::warn!(%error, "cannot write down the newest checkpoint");
        }
    }

    /// Writes evidence that the publisher signed two histories.
    pub fn report(
        &self,
        known: SignedCheckpoint,
        offered: SignedCheckpoint,
        reason: &str,
        response: Option<Vec<u8>>,
    ) {
        self.metrics.equivocations.inc();
        let rotations = self.rotations();
        let evidence = Evidence { known, offered, reason: reason.into(), response, rotations };
        let offered = &evidence.offered.checkpoint;
        match evidence.write(&self.directory) {
            Ok(path) => tracing::error!(
                reason,
                sequence = offered.sequence,
                root = %offered.root,
                evidence = path.as_ref().map(|path| path.display().to_string()),
                "equivocation: the publisher signed two histories"
            ),
            Err(error) => tracing::error!(
                reason,
                sequence = offered.sequence,
                root = %offered.root,
                %error,
                "equivocation: the publisher signed two histories, and the evidence cannot be written"
            ),
        }
    }
}
