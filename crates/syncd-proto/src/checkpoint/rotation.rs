//! How one publisher key names the next: a record that both keys sign.
//!
//! From its sequence on, only the successor's signatures count; below it, the retired key's. The
//! records of a database form a chain that begins with the key that made it. A server shows the
//! whole chain to whoever connects, so that a client that was away follows it from any key that it
//! trusts.
//!
//! # Format
//!
//! Both signatures are Ed25519 over `union_unique(NAMESPACE, message)`, as for checkpoints, with
//! [`RETIRE_NAMESPACE`] for the retired key and [`ACCEPT_NAMESPACE`] for its successor.
//!
//! | bytes | field | |
//! |---|---|---|
//! | 1 | format version, [`FORMAT_VERSION`] | message |
//! | 32 | database identity | message |
//! | 8 | first sequence that the successor signs | message |
//! | 32 | retired key | message |
//! | 32 | successor | message |
//! | 64 | signature of the retired key | |
//! | 64 | signature of the successor | |

use super::SignedCheckpoint;
use crate::types::DatabaseId;
use bytes::BufMut;
use commonware_codec::{
    Buf, EncodeSize, Error as CodecError, FixedSize, RangeCfg, Read, ReadExt as _, Write,
};
use commonware_cryptography::{
    Signer as _, Verifier as _,
    ed25519::{PrivateKey, PublicKey, Signature},
};

/// Namespace of the retired key's signature.
pub const RETIRE_NAMESPACE: &[u8] = b"_SYNCD_KEY_RETIRE";
/// Namespace of the successor's signature.
pub const ACCEPT_NAMESPACE: &[u8] = b"_SYNCD_KEY_ACCEPT";
/// Version of the encoding above.
pub const FORMAT_VERSION: u8 = 1;
/// Most rotations of one database.
pub const ROTATIONS_MAX: usize = 64;

/// One key hands over to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The database.
    pub database: DatabaseId,
    /// First sequence that the successor signs.
    pub from: u64,
    /// The key that signs no more.
    pub retired: PublicKey,
    /// The key that signs from there on.
    pub successor: PublicKey,
    by_retired: Signature,
    by_successor: Signature,
}

fn message(database: DatabaseId, from: u64, retired: &PublicKey, successor: &PublicKey) -> Vec<u8> {
    let mut message = Vec::with_capacity(1 + 32 + 8 + 32 + 32);
    FORMAT_VERSION.write(&mut message);
    database.write(&mut message);
    from.write(&mut message);
    retired.write(&mut message);
    successor.write(&mut message);
    message
}

impl Rotation {
    /// Hands over from `retired` to `successor`.
    pub fn new(
        database: DatabaseId,
        from: u64,
        retired: &PrivateKey,
        successor: &PrivateKey,
    ) -> Self {
        let (old, new) = (retired.public_key(), successor.public_key());
        let message = message(database, from, &old, &new);
        Self {
            database,
            from,
            by_retired: retired.sign(RETIRE_NAMESPACE, &message),
            by_successor: successor.sign(ACCEPT_NAMESPACE, &message),
            retired: old,
            successor: new,
        }
    }

    /// Whether both keys signed it. Says nothing of whether the retired one was trusted.
    pub fn signatures_are_valid(&self) -> bool {
        let message = message(self.database, self.from, &self.retired, &self.successor);
        self.retired.verify(RETIRE_NAMESPACE, &message, &self.by_retired)
            && self.successor.verify(ACCEPT_NAMESPACE, &message, &self.by_successor)
    }
}

impl Write for Rotation {
    fn write(&self, buf: &mut impl BufMut) {
        buf.put_slice(&message(self.database, self.from, &self.retired, &self.successor));
        self.by_retired.write(buf);
        self.by_successor.write(buf);
    }
}

impl FixedSize for Rotation {
    const SIZE: usize = 1 + 32 + 8 + 32 + 32 + 64 + 64;
}

impl Read for Rotation {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        let format = u8::read(buf)?;
        if format != FORMAT_VERSION {
            return Err(CodecError::InvalidEnum(format));
        }
        Ok(Self {
            database: DatabaseId::read(buf)?,
            from: u64::read(buf)?,
            retired: PublicKey::read(buf)?,
            successor: PublicKey::read(buf)?,
            by_retired: Signature::read(buf)?,
            by_successor: Signature::read(buf)?,
        })
    }
}

/// A chain as it goes over the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rotations(pub Vec<Rotation>);

impl Write for Rotations {
    fn write(&self, buf: &mut impl BufMut) {
        self.0.write(buf);
    }
}

impl EncodeSize for Rotations {
    fn encode_size(&self) -> usize {
        self.0.encode_size()
    }
}

impl Read for Rotations {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        Ok(Self(Vec::read_cfg(buf, &(RangeCfg::new(0..=ROTATIONS_MAX), ()))?))
    }
}

/// Where in a database's history a key counts.
pub(super) fn allows(rotations: &Rotations, is_configured: bool, signed: &SignedCheckpoint) -> Key {
    let (key, sequence) = (&signed.publisher, signed.checkpoint.sequence);
    let begun = rotations.0.iter().find(|rotation| rotation.successor == *key);
    let ended = rotations.0.iter().find(|rotation| rotation.retired == *key);
    let is_known = is_configured || begun.is_some();
    match (begun, ended) {
        _ if !is_known => Key::Unknown,
        (_, Some(ended)) if sequence >= ended.from => Key::Retired(ended.from),
        (Some(begun), _) if sequence < begun.from && !is_configured => Key::NotYet(begun.from),
        _ => Key::Allowed,
    }
}

/// What a key may sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// This checkpoint.
    Allowed,
    /// Nothing that we know of.
    Unknown,
    /// Only what comes before this sequence.
    Retired(u64),
    /// Only what comes from this sequence on.
    NotYet(u64),
}
