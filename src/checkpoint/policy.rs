//! Which checkpoints a replica accepts. Pure: no clock, no storage, no network.
//!
//! **Invariant:** time never orders states. Sequence and size do, and they only go forward.

use super::{Checkpoint, SignedCheckpoint};
use crate::database::types::{DatabaseId, Family};
use commonware_cryptography::ed25519::PublicKey;
use std::time::{Duration, SystemTime};

/// What a replica trusts.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Publisher keys; one of them must have signed.
    pub publishers: Vec<PublicKey>,
    /// The pinned database.
    pub database: DatabaseId,
    /// The configured family.
    pub family: Family,
}

/// What an acceptable checkpoint is, compared with the newest one known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// A later state.
    Newer,
    /// The same state, signed later.
    Resigned,
    /// The same state, or an earlier one, with nothing new to learn.
    Stale,
}

/// Why a checkpoint is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not signed by a trusted key.
    #[error("the publisher key {0} is not trusted")]
    UntrustedPublisher(PublicKey),
    /// The signature does not verify.
    #[error("the checkpoint's signature is wrong")]
    BadSignature,
    /// Another database.
    #[error("the checkpoint is of database {found}, but {pinned} is pinned")]
    WrongDatabase {
        /// The database it is of.
        found: DatabaseId,
        /// The pinned one.
        pinned: DatabaseId,
    },
    /// Another family.
    #[error("the checkpoint is of family '{found}', but '{configured}' is configured")]
    WrongFamily {
        /// The family it is of.
        found: Family,
        /// The configured one.
        configured: Family,
    },
    /// The publisher signed two different histories.
    #[error("equivocation: {0}")]
    Equivocation(&'static str),
    /// Signed too long ago, or too far in the future, for a first adoption.
    #[error("the checkpoint was signed {age:?} ago, more than the {max:?} allowed")]
    TooOld {
        /// Its age.
        age: Duration,
        /// The age allowed.
        max: Duration,
    },
    /// Signed in the future.
    #[error("the checkpoint was signed {ahead:?} in the future, more than the {max:?} allowed")]
    FromTheFuture {
        /// How far ahead it is.
        ahead: Duration,
        /// The skew allowed.
        max: Duration,
    },
}

impl Refusal {
    /// Word for the label of `syncd_client_rejected_total`.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::UntrustedPublisher(_) => "untrusted_publisher",
            Self::BadSignature => "bad_signature",
            Self::WrongDatabase { .. } => "wrong_database",
            Self::WrongFamily { .. } => "wrong_family",
            Self::Equivocation(_) => "equivocation",
            Self::TooOld { .. } => "too_old",
            Self::FromTheFuture { .. } => "from_the_future",
        }
    }

    /// Whether only an operator can change this: the client refuses the server by name.
    pub const fn is_mismatch(&self) -> bool {
        matches!(self, Self::WrongDatabase { .. } | Self::WrongFamily { .. })
    }
}

impl Policy {
    /// Verifies `signed` on its own: database, family, key and signature.
    pub fn verify(&self, signed: &SignedCheckpoint) -> Result<(), Refusal> {
        let checkpoint = &signed.checkpoint;
        if !self.publishers.contains(&signed.publisher) {
            return Err(Refusal::UntrustedPublisher(signed.publisher.clone()));
        }
        if checkpoint.database != self.database {
            return Err(Refusal::WrongDatabase {
                found: checkpoint.database,
                pinned: self.database,
            });
        }
        if checkpoint.family != self.family {
            return Err(Refusal::WrongFamily { found: checkpoint.family, configured: self.family });
        }
        if !signed.signature_is_valid() {
            return Err(Refusal::BadSignature);
        }
        Ok(())
    }

    /// Verifies `signed` and compares it with the newest one known.
    pub fn admit(
        &self,
        signed: &SignedCheckpoint,
        newest: Option<&SignedCheckpoint>,
    ) -> Result<Admission, Refusal> {
        self.verify(signed)?;
        newest
            .map_or(Ok(Admission::Newer), |newest| compare(&signed.checkpoint, &newest.checkpoint))
    }
}

/// How `offered` stands to `known`, both signed by the publisher.
fn compare(offered: &Checkpoint, known: &Checkpoint) -> Result<Admission, Refusal> {
    use std::cmp::Ordering::{Equal, Greater, Less};
    match (offered.sequence.cmp(&known.sequence), offered.size.cmp(&known.size)) {
        (Equal, Equal) if offered.same_state(known) => {
            if offered.signed_at_ms > known.signed_at_ms {
                Ok(Admission::Resigned)
            } else {
                Ok(Admission::Stale)
            }
        }
        (Equal, _) => Err(Refusal::Equivocation("two states were signed for one sequence")),
        // Every commit appends at least its commit operation, and floors never go back.
        (Greater, Greater) if offered.floor >= known.floor => Ok(Admission::Newer),
        (Less, Less) if offered.floor <= known.floor => Ok(Admission::Stale),
        (Greater | Less, _) => {
            Err(Refusal::Equivocation("sequence, size and floor do not grow together"))
        }
    }
}

/// Whether `checkpoint` is fresh enough for a first adoption or for readiness.
pub fn check_freshness(
    checkpoint: &Checkpoint,
    now: SystemTime,
    age_max: Duration,
    skew_max: Duration,
) -> Result<(), Refusal> {
    let now_ms = super::unix_ms(now);
    let ahead = Duration::from_millis(checkpoint.signed_at_ms.saturating_sub(now_ms));
    if ahead > skew_max {
        return Err(Refusal::FromTheFuture { ahead, max: skew_max });
    }
    let age = checkpoint.age(now);
    if age > age_max {
        return Err(Refusal::TooOld { age, max: age_max });
    }
    Ok(())
}
