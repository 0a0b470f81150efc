//! What a checkpoint that a server shows means for this replica.
//!
//! It is verified, compared with everything that is known, and, if it is later, proved to extend
//! that. Whatever contradicts the replica's history becomes evidence.

use super::{known::LearnError, state::ReplicaState};
use crate::{
    checkpoint::{Admission, Refusal, SignedCheckpoint, compare},
    database::Fetch,
    ledger::Ledger,
    link::{Link, LinkError},
    replicate::continuity::{self, Break, Continuity, NOT_CONTAINED},
    runtime::{Moment, Runtime},
    verify::history_at,
    wire::RESPONSE_BYTES_MAX,
};

/// How an acceptable checkpoint relates to what the replica knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The newest state known, from now on if not before.
    Newest,
    /// A state before the newest one known.
    Behind,
    /// A later state. Whether its history contains ours cannot be proved: the operations are no
    /// longer held.
    Unproved,
}

/// Why a checkpoint is not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum Unacceptable {
    /// Its signature or its content.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The server does not prove what it has to.
    #[error("{0}")]
    NotProved(String),
    /// The keys that a server shows cannot be written down.
    #[error("{0}")]
    Storage(String),
    /// The connection.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl From<LearnError> for Unacceptable {
    fn from(error: LearnError) -> Self {
        match error {
            LearnError::Refused(refusal) => Self::Refused(refusal),
            error @ LearnError::Storage(_) => Self::Storage(error.to_string()),
        }
    }
}

impl<E: Runtime> ReplicaState<E> {
    /// Judges a checkpoint that the server behind `link` shows.
    pub async fn judge(
        &self,
        signed: &SignedCheckpoint,
        link: &Link<E>,
        now: Moment,
    ) -> Result<Standing, Unacceptable> {
        let ledger = self.ledger.load_full();
        let own = ledger.as_ref().map(|ledger| ledger.head());
        match self.known.admit(signed, own.as_ref())? {
            Admission::Newer => self.judge_newer(signed, own, link, now).await,
            Admission::Resigned => {
                self.known.take(signed, now).await;
                Ok(Standing::Newest)
            }
            Admission::Stale => {
                self.judge_older(signed).await?;
                // The same state may have been signed again with an earlier time.
                self.known.take(signed, now).await;
                let newest = self.known.newest();
                let is_newest =
                    newest.is_some_and(|newest| newest.checkpoint.same_state(&signed.checkpoint));
                Ok(if is_newest { Standing::Newest } else { Standing::Behind })
            }
        }
    }

    /// A later state must contain the newest one known; before there is one, it becomes that.
    async fn judge_newer(
        &self,
        signed: &SignedCheckpoint,
        own: Option<SignedCheckpoint>,
        link: &Link<E>,
        now: Moment,
    ) -> Result<Standing, Unacceptable> {
        if let Some(ours) = self.known.newest().or(own) {
            match self.contains(&ours, signed, link).await? {
                Continuity::Proved => {}
                Continuity::CannotBeProved => {
                    self.known.claim(signed, now);
                    return Ok(Standing::Unproved);
                }
                Continuity::Broken(found) => return Err(self.convict(ours, *found).into()),
            }
        }
        self.known.take(signed, now).await;
        Ok(Standing::Newest)
    }

    /// Asks the server whether the history of `target` contains `ours`.
    pub(super) async fn contains(
        &self,
        ours: &SignedCheckpoint,
        target: &SignedCheckpoint,
        link: &Link<E>,
    ) -> Result<Continuity, Unacceptable> {
        let policy = self.known.policy();
        match continuity::check(ours, self.mode, &policy, link, target).await {
            Ok(found) => Ok(found),
            Err(continuity::Error::Link(error)) => Err(error.into()),
            Err(error) => {
                self.metrics.reject("boundary");
                Err(Unacceptable::NotProved(error.to_string()))
            }
        }
    }

    /// An earlier state must be one of our own history, as far as that is still held.
    pub(super) async fn judge_older(&self, signed: &SignedCheckpoint) -> Result<(), Refusal> {
        let sequence = signed.checkpoint.sequence;
        let (ledger, history) = (self.ledger.load_full(), self.history.load_full());
        let log = ledger.as_ref().map(|ledger| ledger.log()).or(history.as_deref());
        let Some(log) = log.filter(|log| sequence < log.bounds().last) else { return Ok(()) };
        if let Ok(commit) = log.read(sequence).await {
            return match compare(&signed.checkpoint, &commit.checkpoint.checkpoint) {
                Ok(_) => Ok(()),
                Err(reason) => {
                    let (offered, response) = (signed.clone(), None);
                    Err(self.convict(commit.checkpoint, Break { offered, reason, response }))
                }
            };
        }
        match &ledger {
            Some(ledger) => self.judge_by_operations(ledger, signed).await,
            None => Ok(()),
        }
    }

    /// Where the record was trimmed, our own operations tell which states came before.
    async fn judge_by_operations(
        &self,
        ledger: &Ledger<E>,
        signed: &SignedCheckpoint,
    ) -> Result<(), Refusal> {
        let head = ledger.head();
        let (offered, own) = (&signed.checkpoint, &head.checkpoint);
        if offered.size >= own.size {
            return Ok(());
        }
        let fetch = Fetch::Boundary { size: own.size, start: offered.size };
        let Ok(served) = ledger.serve(fetch, RESPONSE_BYTES_MAX).await else { return Ok(()) };
        let body = served.body;
        let roots =
            history_at(ledger.kind(), own.operations_root, own.size, offered.size, body.clone());
        if roots.is_ok_and(|roots| !roots.contains(&offered.operations_root)) {
            let (reason, response) = (NOT_CONTAINED, Some(body.to_vec()));
            let found = Break { offered: head, reason, response };
            return Err(self.convict(signed.clone(), found));
        }
        Ok(())
    }

    /// Writes the evidence of a break.
    pub(super) fn convict(&self, ours: SignedCheckpoint, found: Break) -> Refusal {
        let Break { offered, reason, response } = found;
        self.metrics.reject(Refusal::Equivocation(reason).reason());
        self.known.forget_claims();
        self.known.report(ours, offered, reason, response);
        Refusal::Equivocation(reason)
    }
}
