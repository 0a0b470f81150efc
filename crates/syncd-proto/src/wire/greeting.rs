//! How two ends of different versions find out what both speak.
//!
//! A greeting begins with twelve bytes whose meaning never changes: the oldest and the newest wire version of the client,
//! and its features. The rest of it is as in the oldest version; whatever later versions add comes as [`Extensions`],
//! which those that do not know them skip. The server chooses the newest version and all features that both have.

use bytes::BufMut;
use commonware_codec::{
    Buf, EncodeSize, Error as CodecError, FixedSize, RangeCfg, Read, ReadExt as _, Write,
};

/// A range of wire versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest that is spoken.
    pub oldest: u16,
    /// The newest that is spoken.
    pub newest: u16,
}

impl Versions {
    /// What this program speaks.
    pub const OURS: Self = Self { oldest: 5, newest: 5 };

    /// The newest version that both speak; `None` if there is none.
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }

    /// What the first bytes of a greeting say, whatever follows; `None` if there are too few. Versions before 5 begin with
    /// their one version and something else: whoever speaks none of the range speaks none of theirs.
    pub fn peek(greeting: &[u8]) -> Option<Self> {
        let number =
            |at: usize| Some(u16::from_be_bytes(greeting.get(at..at + 2)?.try_into().ok()?));
        Some(Self { oldest: number(0)?, newest: number(2)? })
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.oldest == self.newest {
            return write!(f, "version {}", self.newest);
        }
        write!(f, "versions {} to {}", self.oldest, self.newest)
    }
}

impl Write for Versions {
    fn write(&self, buf: &mut impl BufMut) {
        self.oldest.write(buf);
        self.newest.write(buf);
    }
}

impl FixedSize for Versions {
    const SIZE: usize = 4;
}

impl Read for Versions {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        Ok(Self { oldest: u16::read(buf)?, newest: u16::read(buf)? })
    }
}

/// What an end can do beyond its wire version, a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// What this program can do: no feature has been defined yet.
    pub const OURS: Self = Self(0);

    /// What both can do. Bits that one of them does not know are not in it.
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Write for Features {
    fn write(&self, buf: &mut impl BufMut) {
        self.0.write(buf);
    }
}

impl FixedSize for Features {
    const SIZE: usize = 8;
}

impl Read for Features {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        Ok(Self(u64::read(buf)?))
    }
}

/// Most extensions of one greeting.
pub const EXTENSIONS_MAX: usize = 16;
/// Most bytes of an extension: all of them fit a client's message beside as many rotations as there may be.
pub const EXTENSION_BYTES_MAX: usize = 128;

/// Parts of a greeting that not every version knows, by number. Numbers are given once and never reused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions(pub Vec<(u16, Vec<u8>)>);

impl Write for Extensions {
    fn write(&self, buf: &mut impl BufMut) {
        self.0.len().write(buf);
        for (number, bytes) in &self.0 {
            number.write(buf);
            bytes.as_slice().write(buf);
        }
    }
}

impl EncodeSize for Extensions {
    fn encode_size(&self) -> usize {
        let each: usize = self.0.iter().map(|(_, bytes)| 2 + bytes.as_slice().encode_size()).sum();
        self.0.len().encode_size() + each
    }
}

impl Read for Extensions {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        let count = usize::read_cfg(buf, &RangeCfg::new(0..=EXTENSIONS_MAX))?;
        let mut extensions = Vec::with_capacity(count);
        for _ in 0..count {
            let number = u16::read(buf)?;
            let range = RangeCfg::new(0..=EXTENSION_BYTES_MAX);
            extensions.push((number, Vec::read_cfg(buf, &(range, ()))?));
        }
        Ok(Self(extensions))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_spoken() {
        let versions = |oldest, newest| Versions { oldest, newest };
        for (ours, theirs, common) in [
            (versions(5, 5), versions(5, 5), Some(5)),
            (versions(5, 7), versions(6, 9), Some(7)),
            (versions(5, 9), versions(4, 6), Some(6)),
            (versions(5, 5), versions(6, 7), None),
            (versions(7, 8), versions(5, 6), None),
            // A range that is none.
            (versions(5, 5), versions(6, 4), None),
        ] {
            assert_eq!(ours.common(theirs), common, "{ours} {theirs}");
            assert_eq!(theirs.common(ours), common, "{ours} {theirs}");
        }
        assert_eq!(Features(0b0110).common(Features(0b1100)), Features(0b0100));
    }
}
