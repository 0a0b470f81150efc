//! Which checkpoints a replica accepts. Pure: no clock, no storage, no network.
//!
//! **Invariant:** time never orders states. Sequence and size do, and they only go forward.

use super::{
    Checkpoint, Rotations, SignedCheckpoint,
    rotation::{self, Key, ROTATIONS_MAX},
};
use crate::types::{DatabaseId, Digest, Family};
use commonware_cryptography::ed25519::PublicKey;
use std::time::{Duration, SystemTime};

/// What a replica trusts.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Publisher keys of the configuration; one of them, or a successor, must have signed.
    pub publishers: Vec<PublicKey>,
    /// The pinned database.
    pub database: DatabaseId,
    /// The configured family.
    pub family: Family,
    /// How those keys handed over to others, as far as it was learned.
    pub rotations: Rotations,
}

/// How an acceptable checkpoint relates to one known before.
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
    UntrustedPublisher(Digest),
    /// Signed by a key that has handed over to another.
    #[error(
        "the publisher key {key} was retired from commit {from} on, and signed commit {sequence}"
    )]
    RetiredPublisher {
        /// The key.
        key: Digest,
        /// First sequence that it may not sign.
        from: u64,
        /// What it signed.
        sequence: u64,
    },
    /// A record of key rotation that is forged, of another database, or contradicts a known one.
    #[error("a rotation of the publisher key is not acceptable: {0}")]
    BadRotation(&'static str),
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
            Self::RetiredPublisher { .. } => "retired_publisher",
            Self::BadRotation(_) => "bad_rotation",
            Self::BadSignature => "bad_signature",
            Self::WrongDatabase { .. } => "wrong_database",
            Self::WrongFamily { .. } => "wrong_family",
            Self::Equivocation(_) => "equivocation",
            Self::TooOld { .. } => "too_old",
            Self::FromTheFuture { .. } => "from_the_future",
        }
    }

    /// Every word that [`Self::reason`] can give.
    pub const REASONS: [&str; 9] = [
        "untrusted_publisher",
        "retired_publisher",
        "bad_rotation",
        "bad_signature",
        "wrong_database",
        "wrong_family",
        "equivocation",
        "too_old",
        "from_the_future",
    ];

    /// Whether only an operator can change this: the client refuses the server by name.
    pub const fn is_mismatch(&self) -> bool {
        matches!(self, Self::WrongDatabase { .. } | Self::WrongFamily { .. })
    }
}

impl Policy {
    /// Learns from a chain of rotations what follows from the keys trusted so far; whether that
    /// was anything new. What is contradictory is refused as a whole.
    pub fn learn(&mut self, offered: &Rotations) -> Result<bool, Refusal> {
        let mut learned = self.rotations.clone();
        for rotation in &offered.0 {
            if learned.0.contains(rotation) {
                continue;
            }
            if rotation.database != self.database {
                return Err(Refusal::BadRotation("it is of another database"));
            }
            let predecessor = learned.0.iter().find(|known| known.successor == rotation.retired);
            if predecessor.is_none() && !self.publishers.contains(&rotation.retired) {
                // Before the keys that we were told to trust.
                continue;
            }
            if learned.0.iter().any(|known| known.retired == rotation.retired) {
                return Err(Refusal::BadRotation("its key handed over to another one"));
            }
            if learned.0.iter().any(|known| known.retired == rotation.successor) {
                return Err(Refusal::BadRotation("it brings a retired key back"));
            }
            if predecessor.is_some_and(|known| known.from >= rotation.from) {
                return Err(Refusal::BadRotation("it comes before its predecessor"));
            }
            if !rotation.signatures_are_valid() {
                return Err(Refusal::BadRotation("a signature is wrong"));
            }
            if learned.0.len() >= ROTATIONS_MAX {
                return Err(Refusal::BadRotation("there are too many"));
            }
            learned.0.push(rotation.clone());
        }
        let is_new = learned != self.rotations;
        self.rotations = learned;
        Ok(is_new)
    }

    /// The policy that storage is opened under: it also accepts what the predecessors of the
    /// trusted keys signed before they handed over, as `rotations` (kept from when they were
    /// learned) say.
    pub fn of_storage(&self, rotations: &Rotations) -> Result<Self, Refusal> {
        let mut policy = Self { rotations: Rotations::default(), ..self.clone() };
        // A successor's signature on a rotation vouches for its predecessor.
        for rotation in rotations.0.iter().rev() {
            if policy.publishers.contains(&rotation.successor)
                && !policy.publishers.contains(&rotation.retired)
            {
                policy.publishers.push(rotation.retired.clone());
            }
        }
        policy.learn(rotations)?;
        Ok(policy)
    }

    /// Whether `key` is trusted for some part of the history.
    pub fn knows(&self, key: &PublicKey) -> bool {
        self.publishers.contains(key)
            || self.rotations.0.iter().any(|known| known.successor == *key)
    }

    /// Verifies `signed` on its own: database, family, key and signature.
    pub fn verify(&self, signed: &SignedCheckpoint) -> Result<(), Refusal> {
        let checkpoint = &signed.checkpoint;
        let mut key = Digest([0; 32]);
        key.0.copy_from_slice(&signed.publisher);
        let is_configured = self.publishers.contains(&signed.publisher);
        match rotation::allows(&self.rotations, is_configured, signed) {
            Key::Allowed => {}
            Key::Unknown | Key::NotYet(_) => return Err(Refusal::UntrustedPublisher(key)),
            Key::Retired(from) => {
                let sequence = checkpoint.sequence;
                return Err(Refusal::RetiredPublisher { key, from, sequence });
            }
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
        newest.map_or(Ok(Admission::Newer), |newest| {
            compare(&signed.checkpoint, &newest.checkpoint).map_err(Refusal::Equivocation)
        })
    }
}

/// How `offered` relates to `known`, both signed by the publisher.
///
/// # Errors
///
/// Why no single history holds both: the publisher signed two.
pub fn compare(offered: &Checkpoint, known: &Checkpoint) -> Result<Admission, &'static str> {
    use std::cmp::Ordering::{Equal, Greater, Less};
    match (offered.sequence.cmp(&known.sequence), offered.size.cmp(&known.size)) {
        (Equal, Equal) if offered.same_state(known) => {
            if offered.signed_at_ms > known.signed_at_ms {
                Ok(Admission::Resigned)
            } else {
                Ok(Admission::Stale)
            }
        }
        (Equal, _) => Err("two states were signed for one sequence"),
        // Every commit appends at least its commit operation, and floors never go back.
        (Greater, Greater) if offered.floor >= known.floor => Ok(Admission::Newer),
        (Less, Less) if offered.floor <= known.floor => Ok(Admission::Stale),
        (Greater | Less, _) => Err("sequence, size and floor do not grow together"),
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{checkpoint::Rotation, types::HashKind};
    use commonware_cryptography::{Signer as _, ed25519::PrivateKey};

    fn checkpoint(sequence: u64, size: u64, root: u8, signed_at_ms: u64) -> Checkpoint {
        Checkpoint {
            database: Digest([1; 32]),
            family: Family::Any,
            hash: HashKind::Blake3,
            sequence,
            floor: size / 2,
            size,
            root: Digest([root; 32]),
            operations_root: Digest([root; 32]),
            committed_at_ms: 1000,
            signed_at_ms,
        }
    }

    fn policy() -> (Policy, PrivateKey) {
        let key = PrivateKey::from_seed(1);
        let publishers = vec![key.public_key()];
        let rotations = Rotations::default();
        (Policy { publishers, database: Digest([1; 32]), family: Family::Any, rotations }, key)
    }

    #[test]
    fn states_only_go_forward() {
        let (policy, key) = policy();
        let known = checkpoint(5, 50, 5, 2000).sign(&key);
        for (offered, expected) in [
            (checkpoint(6, 60, 6, 1), Ok(Admission::Newer)),
            (checkpoint(5, 50, 5, 2001), Ok(Admission::Resigned)),
            (checkpoint(5, 50, 5, 2000), Ok(Admission::Stale)),
            (checkpoint(4, 40, 4, 9000), Ok(Admission::Stale)),
            (checkpoint(5, 50, 6, 3000), Err("equivocation")),
            (checkpoint(5, 51, 5, 3000), Err("equivocation")),
            (checkpoint(6, 50, 6, 3000), Err("equivocation")),
            (checkpoint(6, 40, 6, 3000), Err("equivocation")),
            (checkpoint(4, 60, 4, 3000), Err("equivocation")),
            (Checkpoint { floor: 3, ..checkpoint(6, 60, 6, 1) }, Err("equivocation")),
            (
                Checkpoint { family: Family::Keyless, ..checkpoint(6, 60, 6, 1) },
                Err("wrong_family"),
            ),
            (
                Checkpoint { database: Digest([9; 32]), ..checkpoint(6, 60, 6, 1) },
                Err("wrong_database"),
            ),
        ] {
            let found = policy.admit(&offered.clone().sign(&key), Some(&known));
            assert_eq!(found.map_err(|refusal| refusal.reason()), expected, "{offered:?}");
        }
    }

    #[test]
    fn only_trusted_signatures_count() {
        let (policy, key) = policy();
        let mut signed = checkpoint(1, 10, 1, 1).sign(&PrivateKey::from_seed(2));
        assert_eq!(policy.verify(&signed).unwrap_err().reason(), "untrusted_publisher");
        signed.publisher = key.public_key();
        assert_eq!(policy.verify(&signed).unwrap_err().reason(), "bad_signature");
    }

    /// A key signs before its end, its successor after: nothing else, and no other chain.
    #[test]
    fn keys_are_followed_along_their_chain() {
        let (mut policy, first) = policy();
        let [second, third, other] = [2, 3, 4].map(PrivateKey::from_seed);
        let database = policy.database;
        let rotate =
            |from, old: &PrivateKey, new: &PrivateKey| Rotation::new(database, from, old, new);
        let chain = Rotations(vec![rotate(10, &first, &second), rotate(20, &second, &third)]);
        let reason = |policy: &Policy, sequence, key: &PrivateKey| {
            let signed = checkpoint(sequence, sequence * 10, 1, 1).sign(key);
            policy.verify(&signed).err().map(|refusal| refusal.reason())
        };
        assert_eq!(reason(&policy, 10, &first), None);
        assert_eq!(reason(&policy, 10, &second), Some("untrusted_publisher"));
        assert_eq!(policy.learn(&chain), Ok(true));
        assert_eq!(policy.learn(&chain), Ok(false));
        for (sequence, key, expected) in [
            (9, &first, None),
            (10, &first, Some("retired_publisher")),
            (9, &second, Some("untrusted_publisher")),
            (10, &second, None),
            (19, &second, None),
            (20, &second, Some("retired_publisher")),
            (20, &third, None),
            (500, &third, None),
            (500, &other, Some("untrusted_publisher")),
        ] {
            assert_eq!(reason(&policy, sequence, key), expected, "{sequence}");
        }
        let mut forged = rotate(30, &third, &other);
        forged.from = 31;
        let foreign = Rotation::new(Digest([9; 32]), 30, &third, &other);
        for wrong in [
            forged,
            foreign,
            rotate(11, &first, &other),
            rotate(30, &third, &first),
            rotate(20, &third, &other),
        ] {
            let before = policy.rotations.clone();
            let refusal = policy.learn(&Rotations(vec![wrong])).unwrap_err();
            assert_eq!((refusal.reason(), &policy.rotations), ("bad_rotation", &before));
        }
        // Whoever trusts only the second key learns nothing of what came before it.
        let mut late = Policy { publishers: vec![second.public_key()], ..policy.clone() };
        late.rotations = Rotations::default();
        assert_eq!(late.learn(&chain), Ok(true));
        assert_eq!(reason(&late, 9, &first), Some("untrusted_publisher"));
        assert_eq!(reason(&late, 20, &third), None);
    }

    #[test]
    fn freshness_is_bounded_on_both_sides() {
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let (age, skew) = (Duration::from_secs(60), Duration::from_secs(10));
        let signed = checkpoint(1, 10, 1, 100_000);
        let check = |now| check_freshness(&signed, at(now), age, skew).map_err(|r| r.reason());
        assert_eq!(check(100_000), Ok(()));
        assert_eq!(check(160_000), Ok(()));
        assert_eq!(check(160_001), Err("too_old"));
        assert_eq!(check(90_000), Ok(()));
        assert_eq!(check(89_999), Err("from_the_future"));
    }
}
