//! The identity of a database: what it is a digest of.

use super::{Digest, Family, HashKind};
use crate::{database::Kind, record::CODEC_VERSION, types::DatabaseId};
use bytes::BufMut;
use commonware_codec::{
    Buf, Encode as _, Error as CodecError, FixedSize, Read, ReadExt as _, Write,
};
use commonware_cryptography::{Hasher as _, Sha256, ed25519};

/// Domain of the digest.
const DOMAIN: &[u8] = b"_SYNCD_DATABASE";
/// Version of how storage is laid out; another layout is another database.
pub const LAYOUT_VERSION: u8 = 2;
/// Shape of the Merkle structure: 1 is the Merkle mountain range (docs/adr/0001).
pub(super) const MERKLE_SHAPE: u8 = 1;

/// What a database's identity is made of. Fixed when the database is made, but for the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// 32 random bytes.
    pub random: [u8; 32],
    /// The publisher key that signed the first checkpoint.
    pub genesis: ed25519::PublicKey,
    /// Family.
    pub family: Family,
    /// Hash.
    pub hash: HashKind,
    /// Shape of the Merkle structure.
    pub merkle: u8,
    /// Version of the record codec.
    pub codec: u8,
    /// Version of the storage layout.
    pub layout: u8,
    /// Raised by `syncctl new-epoch` after a restore.
    pub epoch: u64,
}

/// A database's identity with what it was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The digest that checkpoints carry.
    pub id: DatabaseId,
    /// What it is a digest of.
    pub parameters: Parameters,
}

impl Parameters {
    /// The kind of the database.
    pub const fn kind(&self) -> Kind {
        Kind { family: self.family, hash: self.hash }
    }

    /// The parameters of a new database.
    pub const fn new(
        random: [u8; 32],
        genesis: ed25519::PublicKey,
        family: Family,
        hash: HashKind,
    ) -> Self {
        Self {
            random,
            genesis,
            family,
            hash,
            merkle: MERKLE_SHAPE,
            codec: CODEC_VERSION,
            layout: LAYOUT_VERSION,
            epoch: 0,
        }
    }

    /// The identity: SHA-256 over the domain and the encoding, whatever the database's own hash.
    pub fn identity(self) -> Identity {
        let mut id = [0; 32];
        id.copy_from_slice(Sha256::hash(&[DOMAIN, &self.encode()]).as_ref());
        Identity { id: Digest(id), parameters: self }
    }
}

impl Write for Parameters {
    fn write(&self, buf: &mut impl BufMut) {
        self.random.write(buf);
        self.genesis.write(buf);
        self.family.write(buf);
        self.hash.write(buf);
        self.merkle.write(buf);
        self.codec.write(buf);
        self.layout.write(buf);
        self.epoch.write(buf);
    }
}

impl FixedSize for Parameters {
    const SIZE: usize = 32 + 32 + 5 + 8;
}

impl Read for Parameters {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        Ok(Self {
            random: <[u8; 32]>::read(buf)?,
            genesis: ed25519::PublicKey::read(buf)?,
            family: Family::read(buf)?,
            hash: HashKind::read(buf)?,
            merkle: u8::read(buf)?,
            codec: u8::read(buf)?,
            layout: u8::read(buf)?,
            epoch: u64::read(buf)?,
        })
    }
}
