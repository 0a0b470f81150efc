//! Signed states: what a publisher vouches for and what a replica trusts.
//!
//! A [`Checkpoint`] names one state of one database; a [`SignedCheckpoint`] carries the
//! publisher's signature over it. Nothing else in the product is trusted: servers, relays,
//! networks and disks only carry bytes that are checked against a signed checkpoint.
//!
//! # Format
//!
//! The signature is Ed25519 over `varint(len(NAMESPACE)) ‖ NAMESPACE ‖ message`
//! (`commonware_utils::union_unique`), where `message` is the encoding of [`Checkpoint`] below:
//! big-endian integers, fixed length.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | format version, [`FORMAT_VERSION`] |
//! | 32 | database identity |
//! | 1 | family |
//! | 1 | hash |
//! | 8 | sequence |
//! | 8 | floor: first operation that a new replica needs |
//! | 8 | size: operations in the database |
//! | 32 | canonical root: what readers' proofs verify against |
//! | 32 | operations root: what state sync verifies against (equal to the root but for `current`) |
//! | 8 | committed_at, milliseconds since 1970 |
//! | 8 | signed_at, milliseconds since 1970 |

mod identity;
mod policy;
pub mod rotation;

pub use identity::{Identity, LAYOUT_VERSION, Parameters};
pub use policy::{Admission, Policy, Refusal, check_freshness, compare};
pub use rotation::{Rotation, Rotations};

use crate::{
    database::{Kind, State},
    record::CommitMetadata,
    types::{DatabaseId, Digest, Family, HashKind, Root},
};
use bytes::BufMut;
use commonware_codec::{
    Buf, DecodeExt as _, Encode as _, Error as CodecError, FixedSize, Read, ReadExt as _, Write,
};
use commonware_cryptography::{Signer as _, Verifier as _, ed25519};
use std::time::{Duration, SystemTime};

/// Namespace of every checkpoint signature.
pub const NAMESPACE: &[u8] = b"_SYNCD_CHECKPOINT";
/// Version of the encoding above.
pub const FORMAT_VERSION: u8 = 1;

/// One state of one database, as its publisher describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Identity of the database.
    pub database: DatabaseId,
    /// Kind of the database.
    pub family: Family,
    /// Hash of the database.
    pub hash: HashKind,
    /// Number of commits since the database was made.
    pub sequence: u64,
    /// First operation that a new replica needs.
    pub floor: u64,
    /// Number of operations.
    pub size: u64,
    /// Canonical root.
    pub root: Root,
    /// Root over the operations.
    pub operations_root: Root,
    /// When the state was committed, milliseconds since 1970. Times are what the publisher's clock
    /// showed; they order nothing and may go back.
    pub committed_at_ms: u64,
    /// When this description was signed, milliseconds since 1970; see `committed_at_ms`.
    pub signed_at_ms: u64,
}

impl Checkpoint {
    /// What `state` is described as, in the database `id`.
    pub fn of_state(
        id: DatabaseId,
        kind: Kind,
        state: State,
        made: CommitMetadata,
        signed_at_ms: u64,
    ) -> Self {
        let Kind { family, hash } = kind;
        let State { size, floor, root, operations_root } = state;
        let CommitMetadata { sequence, committed_at_ms } = made;
        Self {
            database: id,
            family,
            hash,
            sequence,
            floor,
            size,
            root,
            operations_root,
            committed_at_ms,
            signed_at_ms,
        }
    }

    /// The state that it describes.
    pub const fn state(&self) -> State {
        let Self { size, floor, root, operations_root, .. } = *self;
        State { size, floor, root, operations_root }
    }

    /// The kind of its database.
    pub const fn kind(&self) -> Kind {
        Kind { family: self.family, hash: self.hash }
    }

    /// Whether both describe the same state, whenever they were signed.
    pub fn same_state(&self, other: &Self) -> bool {
        let at = |checkpoint: &Self| Self { signed_at_ms: 0, ..checkpoint.clone() };
        at(self) == at(other)
    }

    /// Signs this description.
    pub fn sign(self, key: &ed25519::PrivateKey) -> SignedCheckpoint {
        let signature = key.sign(NAMESPACE, &self.encode());
        SignedCheckpoint { checkpoint: self, publisher: key.public_key(), signature }
    }

    /// How long ago it was signed, by `now`; zero if it lies in the future.
    pub fn age(&self, now: SystemTime) -> Duration {
        Duration::from_millis(unix_ms(now).saturating_sub(self.signed_at_ms))
    }
}

impl Write for Checkpoint {
    fn write(&self, buf: &mut impl BufMut) {
        FORMAT_VERSION.write(buf);
        self.database.write(buf);
        self.family.write(buf);
        self.hash.write(buf);
        self.sequence.write(buf);
        self.floor.write(buf);
        self.size.write(buf);
        self.root.write(buf);
        self.operations_root.write(buf);
        self.committed_at_ms.write(buf);
        self.signed_at_ms.write(buf);
    }
}

impl FixedSize for Checkpoint {
    const SIZE: usize = 1 + 32 + 1 + 1 + 8 + 8 + 8 + 32 + 32 + 8 + 8;
}

impl Read for Checkpoint {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        let format = u8::read(buf)?;
        if format != FORMAT_VERSION {
            return Err(CodecError::InvalidEnum(format));
        }
        let checkpoint = Self {
            database: Digest::read(buf)?,
            family: Family::read(buf)?,
            hash: HashKind::read(buf)?,
            sequence: u64::read(buf)?,
            floor: u64::read(buf)?,
            size: u64::read(buf)?,
            root: Digest::read(buf)?,
            operations_root: Digest::read(buf)?,
            committed_at_ms: u64::read(buf)?,
            signed_at_ms: u64::read(buf)?,
        };
        // Every database begins with one commit operation, and a floor lies inside its state.
        if checkpoint.floor >= checkpoint.size || checkpoint.size > 1 << 62 {
            return Err(CodecError::Invalid("checkpoint", "floor is not below size"));
        }
        Ok(checkpoint)
    }
}

/// A checkpoint with its publisher's signature. Decoding does not verify: see [`Policy`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCheckpoint {
    /// What is signed.
    pub checkpoint: Checkpoint,
    /// The key that claims to have signed it.
    pub publisher: ed25519::PublicKey,
    /// The signature.
    pub signature: ed25519::Signature,
}

impl SignedCheckpoint {
    /// Whether the signature is the claimed publisher's. Says nothing of whether that key is
    /// trusted.
    pub fn signature_is_valid(&self) -> bool {
        self.publisher.verify(NAMESPACE, &self.checkpoint.encode(), &self.signature)
    }

    /// The form that `GET /v1/checkpoint` answers.
    pub fn to_json(&self) -> serde_json::Value {
        let c = &self.checkpoint;
        serde_json::json!({
            "database": c.database,
            "family": c.family,
            "hash": c.hash,
            "sequence": c.sequence,
            "floor": c.floor,
            "size": c.size,
            "root": c.root,
            "operations_root": c.operations_root,
            "committed_at": c.committed_at_ms,
            "signed_at": c.signed_at_ms,
            "publisher": hex::encode(&self.publisher),
            "signature": hex::encode(&self.signature),
            "encoded": hex::encode(self.encode()),
        })
    }

    /// Reads the `encoded` form.
    pub fn from_hex(text: &str) -> Result<Self, String> {
        let bytes = hex::decode(text.trim()).map_err(|error| error.to_string())?;
        Self::decode(bytes::Bytes::from(bytes)).map_err(|error| error.to_string())
    }
}

impl Write for SignedCheckpoint {
    fn write(&self, buf: &mut impl BufMut) {
        self.checkpoint.write(buf);
        self.publisher.write(buf);
        self.signature.write(buf);
    }
}

impl FixedSize for SignedCheckpoint {
    const SIZE: usize = Checkpoint::SIZE + 32 + 64;
}

impl Read for SignedCheckpoint {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        Ok(Self {
            checkpoint: Checkpoint::read(buf)?,
            publisher: ed25519::PublicKey::read(buf)?,
            signature: ed25519::Signature::read(buf)?,
        })
    }
}

/// `time` as milliseconds since 1970; zero before.
pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}
