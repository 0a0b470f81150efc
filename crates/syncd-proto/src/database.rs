//! What a database is asked and what it answers: kinds, states, requests for operations, operations.

use crate::{
    record::{self, CommitMetadata},
    types::{Digest, Family, HashKind, Root},
};
use bytes::{BufMut, Bytes};
use commonware_codec::{
    Buf, EncodeSize, Error as CodecError, FixedSize, Read, ReadExt as _, Write,
};
use std::num::NonZeroU64;

/// What a database does when commits are executed again: a different version may give another
/// root for the same writes, so a commit says which one made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecutionVersion {
    /// Version of commonware-storage, as YYYYMMPP.
    pub library: u32,
    /// How the floor is advanced; 1 is `Proportional` (`any`, `current`), a floor of 0
    /// (`immutable`, `keyless`).
    pub policy: u8,
    /// How records are encoded.
    pub codec: u8,
}

/// The execution version of this program.
pub const EXECUTION_VERSION: ExecutionVersion =
    ExecutionVersion { library: 20_261_000, policy: 1, codec: record::CODEC_VERSION };

impl std::fmt::Display for ExecutionVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.library, self.policy, self.codec)
    }
}

impl Write for ExecutionVersion {
    fn write(&self, buf: &mut impl BufMut) {
        self.library.write(buf);
        self.policy.write(buf);
        self.codec.write(buf);
    }
}

impl FixedSize for ExecutionVersion {
    const SIZE: usize = 6;
}

impl Read for ExecutionVersion {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        Ok(Self { library: u32::read(buf)?, policy: u8::read(buf)?, codec: u8::read(buf)? })
    }
}

/// Which implementation a database needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Family.
    pub family: Family,
    /// Hash.
    pub hash: HashKind,
}

impl Kind {
    /// What a user's change may do.
    pub const fn write_rule(self) -> WriteRule {
        match self.family {
            Family::Any | Family::Current => WriteRule::Upsert,
            Family::Immutable => WriteRule::InsertOnce,
            Family::Keyless => WriteRule::Append,
        }
    }
}

/// What a user's change may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteRule {
    /// Set, overwrite and delete.
    Upsert,
    /// Set once.
    InsertOnce,
    /// Append.
    Append,
}

/// A state of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Number of operations.
    pub size: u64,
    /// First operation that a new replica needs.
    pub floor: u64,
    /// Canonical root.
    pub root: Root,
    /// Root over the operations.
    pub operations_root: Root,
}

/// A request for part of the operations, proved against the root that the database had at `size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetch {
    /// Operations from `start`.
    Operations {
        /// Prove against the state of this size.
        size: u64,
        /// First operation.
        start: u64,
        /// Most operations to return.
        max: NonZeroU64,
    },
    /// The operation at `start` with the Merkle nodes that stand for everything before it.
    Boundary {
        /// Prove against the state of this size.
        size: u64,
        /// The operation.
        start: u64,
    },
}

impl Fetch {
    /// Most operations that an answer may hold.
    pub const fn max(&self) -> NonZeroU64 {
        match self {
            Self::Operations { max, .. } => *max,
            Self::Boundary { .. } => NonZeroU64::MIN,
        }
    }

    /// First operation asked for.
    pub const fn start(&self) -> u64 {
        match self {
            Self::Operations { start, .. } | Self::Boundary { start, .. } => *start,
        }
    }

    /// Size of the state to prove against.
    pub const fn size(&self) -> u64 {
        match self {
            Self::Operations { size, .. } | Self::Boundary { size, .. } => *size,
        }
    }
}

impl Write for Fetch {
    fn write(&self, buf: &mut impl BufMut) {
        match self {
            Self::Operations { size, start, max } => {
                0u8.write(buf);
                size.write(buf);
                start.write(buf);
                max.write(buf);
            }
            Self::Boundary { size, start } => {
                1u8.write(buf);
                size.write(buf);
                start.write(buf);
            }
        }
    }
}

impl EncodeSize for Fetch {
    fn encode_size(&self) -> usize {
        match self {
            Self::Operations { .. } => 25,
            Self::Boundary { .. } => 17,
        }
    }
}

impl Read for Fetch {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        let fetch = match u8::read(buf)? {
            0 => Self::Operations {
                size: u64::read(buf)?,
                start: u64::read(buf)?,
                max: NonZeroU64::read(buf)?,
            },
            1 => Self::Boundary { size: u64::read(buf)?, start: u64::read(buf)? },
            other => return Err(CodecError::InvalidEnum(other)),
        };
        if fetch.start() >= fetch.size() || fetch.size() > 1 << 62 {
            return Err(CodecError::Invalid("fetch", "start is not below size"));
        }
        Ok(fetch)
    }
}

/// An operation of the log, as the product reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A key got a value.
    Put {
        /// Hash of the user's key.
        hash: Digest,
        /// The user's key.
        key: Bytes,
        /// The user's value.
        value: Bytes,
    },
    /// A key was removed.
    Delete {
        /// Hash of the user's key.
        hash: Digest,
    },
    /// A value was appended.
    Append {
        /// The user's value.
        value: Bytes,
    },
    /// A commit ended here; the first one of a database says nothing of itself.
    Commit(Option<CommitMetadata>),
}

/// What an entry is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// The user's key.
    Key(Bytes),
    /// Its place in the log (`keyless`).
    Location(u64),
}

/// A name and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is called.
    pub name: Name,
    /// The user's value.
    pub value: Bytes,
}
