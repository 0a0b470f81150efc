//! Plain types that the rest of the product speaks: no storage, no runtime, no generics.

use bytes::BufMut;
use commonware_codec::{
    Buf, EncodeSize, Error as CodecError, FixedSize, RangeCfg, Read, ReadExt as _, Write,
};
use std::{fmt, str::FromStr};

/// Length of every digest here, in bytes: both supported hashes have 32-byte digests.
pub const DIGEST_LENGTH: usize = 32;
/// Longest key a user may write, in bytes.
pub const KEY_LENGTH_MAX: usize = 1024;
/// Longest value that any configuration may allow, in bytes.
pub const VALUE_LENGTH_MAX: usize = 64 * 1024;
/// Longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_LENGTH_MAX: usize = 255;

/// Declares an enumeration that is one byte on the wire and a lower-case word everywhere else.
macro_rules! named_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $code:literal => $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            /// Every variant, in the order of its code.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word used in flags, JSON and logs.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The byte used in encoded forms.
            pub const fn code(self) -> u8 {
                match self { $(Self::$variant => $code),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = String;
            fn from_str(word: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|v| v.as_str() == word).ok_or_else(|| {
                    let allowed: Vec<_> = Self::ALL.iter().map(|v| v.as_str()).collect();
                    format!("'{word}' is not one of {}", allowed.join(", "))
                })
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let word = <String as serde::Deserialize>::deserialize(d)?;
                word.parse().map_err(serde::de::Error::custom)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.as_str())
            }
        }

        impl Write for $name {
            fn write(&self, buf: &mut impl BufMut) { self.code().write(buf); }
        }

        impl FixedSize for $name { const SIZE: usize = 1; }

        impl Read for $name {
            type Cfg = ();
            fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
                match u8::read(buf)? {
                    $($code => Ok(Self::$variant),)+
                    other => Err(CodecError::InvalidEnum(other)),
                }
            }
        }
    };
}

named_enum! {
    /// Kind of database.
    Family {
        /// Keys are set, overwritten and deleted; proves that an operation stands in the history.
        Any = 1 => "any",
        /// Like `any`, and proves present values and absence.
        Current = 2 => "current",
        /// A key is set once and stays.
        Immutable = 3 => "immutable",
        /// An append-only log of values.
        Keyless = 4 => "keyless",
    }
}

named_enum! {
    /// How much of a database a process keeps.
    Mode {
        /// The operations above the floor.
        Full = 1 => "full",
        /// Only the authenticated frontier.
        Compact = 2 => "compact",
    }
}

named_enum! {
    /// Hash function of a database; part of its identity.
    HashKind {
        /// SHA-256.
        Sha256 = 1 => "sha256",
        /// BLAKE3 with 32-byte output.
        Blake3 = 2 => "blake3",
    }
}

/// A 32-byte digest, printed as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; DIGEST_LENGTH]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = [0; DIGEST_LENGTH];
        hex::decode_to_slice(text.trim(), &mut bytes)
            .map_err(|error| format!("'{}' is not 64 hexadecimal digits: {error}", text.trim()))?;
        Ok(Self(bytes))
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl Write for Digest {
    fn write(&self, buf: &mut impl BufMut) {
        self.0.write(buf);
    }
}

impl FixedSize for Digest {
    const SIZE: usize = DIGEST_LENGTH;
}

impl Read for Digest {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        Ok(Self(<[u8; DIGEST_LENGTH]>::read(buf)?))
    }
}

/// Root of a state (see [`crate::checkpoint::Checkpoint`]).
pub type Root = Digest;
/// Identity of a database, made once with it.
pub type DatabaseId = Digest;

/// One change that a user asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Set `key` to `value`.
    Put {
        /// The user's key.
        key: Vec<u8>,
        /// The user's value.
        value: Vec<u8>,
    },
    /// Remove `key`; removing an absent key is no error.
    Delete {
        /// The user's key.
        key: Vec<u8>,
    },
    /// Append `value` (`keyless` only).
    Append {
        /// The user's value.
        value: Vec<u8>,
    },
}

/// The most that the allocator takes for a piece of memory beyond what was asked for.
pub const ALLOCATION_BYTES: usize = 32;

/// What `capacity` bytes take of the heap.
const fn allocated(capacity: usize) -> usize {
    // A word of the allocator's own, pieces of 16 bytes, the smallest of 32.
    match (capacity + 8).next_multiple_of(16) {
        _ if capacity == 0 => 0,
        bytes if bytes < 32 => 32,
        bytes => bytes,
    }
}

impl Change {
    /// Pieces of memory that a change has at most.
    pub const ALLOCATIONS_MAX: usize = 2;

    /// Bytes that it takes of the heap.
    pub const fn heap_bytes(&self) -> usize {
        match self {
            Self::Put { key, value } => allocated(key.capacity()) + allocated(value.capacity()),
            Self::Delete { key: bytes } | Self::Append { value: bytes } => {
                allocated(bytes.capacity())
            }
        }
    }

    /// The key this change is about, if it has one.
    pub fn key(&self) -> Option<&[u8]> {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => Some(key),
            Self::Append { .. } => None,
        }
    }
}

impl Write for Change {
    fn write(&self, buf: &mut impl BufMut) {
        match self {
            Self::Put { key, value } => {
                0u8.write(buf);
                key.as_slice().write(buf);
                value.as_slice().write(buf);
            }
            Self::Delete { key } => {
                1u8.write(buf);
                key.as_slice().write(buf);
            }
            Self::Append { value } => {
                2u8.write(buf);
                value.as_slice().write(buf);
            }
        }
    }
}

impl EncodeSize for Change {
    fn encode_size(&self) -> usize {
        1 + match self {
            Self::Put { key, value } => {
                key.as_slice().encode_size() + value.as_slice().encode_size()
            }
            Self::Delete { key } => key.as_slice().encode_size(),
            Self::Append { value } => value.as_slice().encode_size(),
        }
    }
}

impl Read for Change {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        let key = |buf: &mut _| Vec::read_cfg(buf, &(RangeCfg::new(0..=KEY_LENGTH_MAX), ()));
        let value = |buf: &mut _| Vec::read_cfg(buf, &(RangeCfg::new(0..=VALUE_LENGTH_MAX), ()));
        match u8::read(buf)? {
            0 => Ok(Self::Put { key: key(buf)?, value: value(buf)? }),
            1 => Ok(Self::Delete { key: key(buf)? }),
            2 => Ok(Self::Append { value: value(buf)? }),
            other => Err(CodecError::InvalidEnum(other)),
        }
    }
}
