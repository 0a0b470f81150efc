//! What the database stores as its values.
//!
//! The database's value type is one enumeration, because a commit's metadata is of that type too
//! and is part of the root.

use crate::types::{KEY_LENGTH_MAX, VALUE_LENGTH_MAX};
use bytes::BufMut;
use bytes::Bytes;
use commonware_codec::{Buf, EncodeSize, Error as CodecError, RangeCfg, Read, ReadExt as _, Write};

/// Version of this encoding; part of the execution version and of the database's identity.
pub const CODEC_VERSION: u8 = 1;

/// Most bytes that a record's encoding adds to its key and value: a tag and two length prefixes.
pub const RECORD_OVERHEAD_MAX: usize = 1 + 5 + 5;

/// A value of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A user's key and value.
    Entry {
        /// The key as the user wrote it; the database's own key is its hash.
        key: Bytes,
        /// The value as the user wrote it.
        value: Bytes,
    },
    /// What a commit says of itself.
    Commit(CommitMetadata),
    /// A user's value in a log of values, which has no keys.
    Value(Bytes),
}

/// What a commit says of itself, inside the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitMetadata {
    /// Sequence of the commit.
    pub sequence: u64,
    /// When it was made, milliseconds since 1970.
    pub committed_at_ms: u64,
}

impl Write for CommitMetadata {
    fn write(&self, buf: &mut impl BufMut) {
        self.sequence.write(buf);
        self.committed_at_ms.write(buf);
    }
}

impl commonware_codec::FixedSize for CommitMetadata {
    const SIZE: usize = 16;
}

impl Read for CommitMetadata {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        Ok(Self { sequence: u64::read(buf)?, committed_at_ms: u64::read(buf)? })
    }
}

impl Write for Record {
    fn write(&self, buf: &mut impl BufMut) {
        match self {
            Self::Entry { key, value } => {
                0u8.write(buf);
                key.write(buf);
                value.write(buf);
            }
            Self::Commit(metadata) => {
                1u8.write(buf);
                metadata.write(buf);
            }
            Self::Value(value) => {
                2u8.write(buf);
                value.write(buf);
            }
        }
    }
}

impl EncodeSize for Record {
    fn encode_size(&self) -> usize {
        1 + match self {
            Self::Entry { key, value } => key.encode_size() + value.encode_size(),
            Self::Commit(metadata) => metadata.encode_size(),
            Self::Value(value) => value.encode_size(),
        }
    }
}

impl Read for Record {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        match u8::read(buf)? {
            0 => Ok(Self::Entry {
                key: Bytes::read_cfg(buf, &RangeCfg::new(0..=KEY_LENGTH_MAX))?,
                value: Bytes::read_cfg(buf, &RangeCfg::new(0..=VALUE_LENGTH_MAX))?,
            }),
            1 => Ok(Self::Commit(CommitMetadata::read(buf)?)),
            2 => Ok(Self::Value(Bytes::read_cfg(buf, &RangeCfg::new(0..=VALUE_LENGTH_MAX))?)),
            other => Err(CodecError::InvalidEnum(other)),
        }
    }
}
