//! What the replica knows of the publisher's history, and what happens to what contradicts it.
//!
//! **Invariant:** a checkpoint becomes the newest known only if it extends what was known before:
//! it was executed, or [proved](crate::replicate::continuity). What contradicts that is evidence,
//! not knowledge: it is never kept, and never shown to a server.

use super::{evidence, freshness::Freshness, metrics::Metrics};
use crate::{
    checkpoint::{Admission, Policy, Refusal, Rotations, SignedCheckpoint, compare},
    checkpoints::CheckpointStore,
    rotations::RotationStore,
    runtime::{Moment, Runtime},
    storage_record,
    verify::Evidence,
};
use arc_swap::ArcSwap;
use commonware_utils::sync::{AsyncMutex, Mutex};
use std::{collections::VecDeque, path::PathBuf, sync::Arc, time::Duration};

/// How often the newest checkpoint is written down while commits come (each of which the log
/// keeps anyway).
const KEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Checkpoints remembered that were signed but could not be proved to extend ours.
const CLAIMS_MAX: usize = 16;

/// Why the chain of publisher keys that a server shows is not followed.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// It is not acceptable.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It cannot be written down. A retired key would count again after a restart, so nothing
    /// goes on before it is.
    #[error("cannot write down the retired publisher keys: {0}")]
    Storage(#[from] storage_record::Error),
}

#[derive(Default)]
struct Heard {
    newest: Option<SignedCheckpoint>,
    /// Later signed states that are not known to extend the newest.
    claims: VecDeque<SignedCheckpoint>,
}

/// What a replica verifies against.
pub struct Policies {
    /// What others show.
    pub of_peers: Policy,
    /// What it kept: predecessors of the trusted keys count too, up to where they handed over.
    pub of_storage: Policy,
}

/// What the replica knows of the publisher's history.
pub struct Known<E: Runtime> {
    policy: ArcSwap<Policy>,
    of_storage: Policy,
    heard: Mutex<Heard>,
    store: AsyncMutex<CheckpointStore<E>>,
    rotations: AsyncMutex<RotationStore<E>>,
    /// By the monotonic clock.
    kept_at: Mutex<Option<Duration>>,
    freshness: Mutex<Freshness>,
    directory: PathBuf,
    metrics: Arc<Metrics>,
}

impl<E: Runtime> Known<E> {
    /// Begins with what the store says and with `own`, the newest state that was adopted, whether
    /// or not its data can still be opened: it binds the replica all the same.
    pub fn new(
        Policies { of_peers, of_storage }: Policies,
        store: CheckpointStore<E>,
        rotations: RotationStore<E>,
        own: Option<&SignedCheckpoint>,
        directory: PathBuf,
        metrics: Arc<Metrics>,
        freshness: Freshness,
    ) -> Self {
        let now = freshness.began();
        let kept = store.newest().cloned();
        let known = Self {
            policy: ArcSwap::from_pointee(of_peers),
            of_storage,
            heard: Mutex::default(),
            store: AsyncMutex::new(store),
            rotations: AsyncMutex::new(rotations),
            kept_at: Mutex::default(),
            freshness: Mutex::new(freshness),
            directory,
            metrics,
        };
        let newest = known.reconcile(kept, own.cloned(), now);
        if let Some(newest) = &newest {
            known.freshness.lock().recall(&newest.checkpoint, now);
        }
        known.heard.lock().newest = newest;
        known
    }

    /// The newest of what was written down and the replica's own state.
    fn reconcile(
        &self,
        kept: Option<SignedCheckpoint>,
        own: Option<SignedCheckpoint>,
        now: Moment,
    ) -> Option<SignedCheckpoint> {
        let kept = kept.filter(|kept| {
            let verified = self.of_storage.verify(kept);
            if let Err(refusal) = &verified {
                // The trusted keys were changed: an operator's act.
                tracing::warn!(%refusal, "the newest checkpoint written down does not count");
            }
            verified.is_ok()
        });
        let (kept, own) = match (kept, own) {
            (Some(kept), Some(own)) => (kept, own),
            (kept, own) => return kept.or(own),
        };
        match compare(&kept.checkpoint, &own.checkpoint) {
            Ok(Admission::Newer) => Some(kept),
            Ok(Admission::Resigned | Admission::Stale) if self.prefers(&kept, &own, now) => {
                Some(kept)
            }
            Ok(Admission::Resigned | Admission::Stale) => Some(own),
            Err(reason) => {
                self.report(own.clone(), kept, reason, None);
                Some(own)
            }
        }
    }

    /// Whether `offered`, another signature of the state of `known`, takes its place.
    fn prefers(&self, offered: &SignedCheckpoint, known: &SignedCheckpoint, now: Moment) -> bool {
        let (offered, known) = (&offered.checkpoint, &known.checkpoint);
        offered.same_state(known) && self.freshness.lock().prefers(offered, known, now)
    }

    /// Age of the newest signature heard that was no future one; `None` if there was none.
    pub fn signature_age(&self, now: Moment) -> Option<Duration> {
        self.freshness.lock().age(now)
    }

    /// Whether a signature was heard since the start.
    pub fn is_heard(&self) -> bool {
        self.freshness.lock().is_heard()
    }

    /// How far the newest signature heard lies in the future, if further than tolerated.
    pub fn signature_ahead(&self, now: Moment) -> Option<Duration> {
        let target = self.target()?;
        self.freshness.lock().ahead(&target.checkpoint, now)
    }

    /// Time since the newest signature that was no future one arrived, or since the start.
    pub fn silence(&self, now: Moment) -> Duration {
        self.freshness.lock().silence(now)
    }

    /// The newest checkpoint known: the replica's own state, or one proved to extend it.
    pub fn newest(&self) -> Option<SignedCheckpoint> {
        self.heard.lock().newest.clone()
    }

    /// The newest state that the publisher signed, as far as it was heard; not all of it may be
    /// known to extend ours. For telling how far behind the replica is, for nothing else.
    pub fn target(&self) -> Option<SignedCheckpoint> {
        let heard = self.heard.lock();
        let sequence = |signed: &&SignedCheckpoint| signed.checkpoint.sequence;
        let claimed = heard.claims.iter().max_by_key(sequence);
        match (&heard.newest, claimed) {
            (Some(newest), Some(claimed)) if sequence(&claimed) <= sequence(&newest) => {
                Some(newest.clone())
            }
            (newest, claimed) => claimed.or(newest.as_ref()).cloned(),
        }
    }

    /// What checkpoints are verified against now.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// Whether `signed` comes from before the trusted keys, by a predecessor of theirs, and a later state was heard of. It is of
    /// the one history, and still not to be executed: it may be forged by whoever holds the predecessor now.
    pub fn is_of_a_predecessor(&self, signed: &SignedCheckpoint) -> bool {
        // By the key first: each commit comes this way, and a signature is verified once.
        let sequence = signed.checkpoint.sequence;
        !self.policy.load().knows(&signed.publisher)
            && self.target().is_some_and(|target| target.checkpoint.sequence > sequence)
            && self.of_storage.verify(signed).is_ok()
    }

    /// Verifies `signed` and compares it with the newest one known and with `own`, the state
    /// served. A contradiction becomes evidence. Remembers nothing.
    pub fn admit(
        &self,
        signed: &SignedCheckpoint,
        own: Option<&SignedCheckpoint>,
    ) -> Result<Admission, Refusal> {
        if let Err(refusal) = self.policy.load().verify(signed) {
            self.metrics.reject(refusal.reason());
            return Err(refusal);
        }
        let newest = self.newest();
        let mut admission = Admission::Newer;
        for (index, known) in newest.iter().chain(own).enumerate() {
            match compare(&signed.checkpoint, &known.checkpoint) {
                // The newest one known, or our own where there is no other.
                Ok(found) if index == 0 => admission = found,
                Ok(_) => {}
                Err(reason) => {
                    self.metrics.reject(Refusal::Equivocation(reason).reason());
                    self.report(known.clone(), signed.clone(), reason, None);
                    return Err(Refusal::Equivocation(reason));
                }
            }
        }
        Ok(admission)
    }

    /// Takes `signed`, which extends what is known, as known; or, of the state that is known
    /// already, the better of two signatures.
    pub async fn take(&self, signed: &SignedCheckpoint, now: Moment) {
        {
            let mut heard = self.heard.lock();
            let (is_signed_now, is_better) = match &heard.newest {
                None => (true, true),
                Some(newest) => match compare(&signed.checkpoint, &newest.checkpoint) {
                    Ok(Admission::Newer) => (true, true),
                    Ok(_) => (
                        signed.checkpoint.same_state(&newest.checkpoint),
                        self.prefers(signed, newest, now),
                    ),
                    Err(_) => (false, false),
                },
            };
            if is_signed_now {
                self.freshness.lock().note(&signed.checkpoint, now);
            }
            if !is_better {
                return;
            }
            let sequence = signed.checkpoint.sequence;
            heard.claims.retain(|claim| claim.checkpoint.sequence > sequence);
            heard.newest = Some(signed.clone());
        }
        self.keep_now_and_then(now).await;
    }

    /// Writes the newest checkpoint down, at most once in [`KEEP_INTERVAL`].
    pub async fn keep_now_and_then(&self, now: Moment) {
        let is_due = {
            let mut kept_at = self.kept_at.lock();
            let is_due = kept_at.is_none_or(|kept| now.monotonic >= kept + KEEP_INTERVAL);
            if is_due {
                *kept_at = Some(now.monotonic);
            }
            is_due
        };
        if is_due {
            self.keep().await;
        }
    }

    /// Remembers `signed`, a later state that cannot be proved to extend what is known.
    pub fn claim(&self, signed: &SignedCheckpoint, now: Moment) {
        self.freshness.lock().note(&signed.checkpoint, now);
        let mut heard = self.heard.lock();
        heard.claims.retain(|claim| !claim.checkpoint.same_state(&signed.checkpoint));
        if heard.claims.len() == CLAIMS_MAX {
            heard.claims.pop_front();
        }
        heard.claims.push_back(signed.clone());
    }

    /// Forgets what could not be proved: whoever said it was found to lie.
    pub fn forget_claims(&self) {
        self.heard.lock().claims.clear();
    }

    /// Takes states that were executed, in their order, as known. What was claimed before and
    /// contradicts them becomes evidence.
    pub async fn adopted(&self, states: impl Iterator<Item = &SignedCheckpoint>, now: Moment) {
        let claims: Vec<_> = self.heard.lock().claims.iter().cloned().collect();
        let mut newest = None;
        for state in states {
            for claim in &claims {
                if let Err(reason) = compare(&claim.checkpoint, &state.checkpoint) {
                    self.report(state.clone(), claim.clone(), reason, None);
                    self.heard.lock().claims.retain(|kept| kept != claim);
                }
            }
            newest = Some(state);
        }
        if let Some(newest) = newest {
            self.take(newest, now).await;
        }
    }

    /// How the trusted keys followed each other, as far as it was learned.
    pub fn rotations(&self) -> Rotations {
        self.policy.load().rotations.clone()
    }

    /// Follows the trusted keys along the chain that a server shows.
    pub async fn learn(&self, offered: &Rotations) -> Result<(), LearnError> {
        let mut policy = Policy::clone(&self.policy.load());
        let is_new =
            policy.learn(offered).inspect_err(|refusal| self.metrics.reject(refusal.reason()))?;
        if !is_new {
            return Ok(());
        }
        // Durable first: a key that was retired once must be so after a restart, too.
        self.rotations.lock().await.keep(&policy.rotations).await?;
        if let Some(newest) = policy.rotations.0.last() {
            tracing::warn!(
                from = newest.from,
                retired = %newest.retired,
                successor = %newest.successor,
                "the publisher key handed over to its successor: name that in --trusted-key"
            );
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
        let rotations = self.rotations();
        let evidence = Evidence { known, offered, reason: reason.into(), response, rotations };
        let offered = &evidence.offered.checkpoint;
        let written = evidence::write(&evidence, &self.directory);
        // After the file: whoever sees the count finds it.
        self.metrics.equivocations.inc();
        match written {
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
