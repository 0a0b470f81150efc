//! The operations of a log, as the library encodes them for each family.

use bytes::Bytes;
use commonware_codec::{Error as CodecError, Read as _, ReadExt as _};
use commonware_storage::merkle::mmr::Location;
use syncd_proto::{
    database::Operation,
    record::{CommitMetadata, Record},
    types::{Digest, Family},
};

/// First byte of an operation of `any` and `current`.
pub(crate) const DELETE: u8 = 0xd1;
pub(crate) const UPDATE: u8 = 0xd2;
pub(crate) const COMMIT: u8 = 0xd3;
/// First byte of an operation of `immutable`.
const SET: u8 = 0;
const IMMUTABLE_COMMIT: u8 = 1;
/// First byte of an operation of `keyless`.
const KEYLESS_COMMIT: u8 = 0;
const APPEND: u8 = 1;

/// An operation and the bytes of it that the tree covers.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) bytes: Bytes,
    pub(crate) operation: Operation,
}

/// Reads one operation of `family`.
pub(crate) fn read(family: Family, buf: &mut Bytes) -> Result<Encoded, CodecError> {
    let all = buf.clone();
    let operation = read_plain(family, buf)?;
    let length = all.len() - buf.len();
    Ok(Encoded { bytes: all.slice(..length), operation })
}

fn read_plain(family: Family, buf: &mut Bytes) -> Result<Operation, CodecError> {
    let tag = u8::read(buf)?;
    match (family, tag) {
        (Family::Any | Family::Current, DELETE) => {
            Ok(Operation::Delete { hash: Digest::read(buf)? })
        }
        (Family::Any, UPDATE) | (Family::Immutable, SET) => read_put(buf),
        (Family::Current, UPDATE) => {
            let put = read_put(buf)?;
            // The next key in the order of hashes.
            Digest::read(buf)?;
            Ok(put)
        }
        (Family::Any | Family::Current, COMMIT)
        | (Family::Immutable, IMMUTABLE_COMMIT)
        | (Family::Keyless, KEYLESS_COMMIT) => {
            let metadata = read_metadata(buf)?;
            Location::read(buf)?;
            Ok(Operation::Commit(metadata))
        }
        (Family::Keyless, APPEND) => match Record::read(buf)? {
            Record::Value(value) => Ok(Operation::Append { value }),
            _ => Err(CodecError::Invalid("operation", "no value in a log of values")),
        },
        (_, tag) => Err(CodecError::InvalidEnum(tag)),
    }
}

fn read_put(buf: &mut Bytes) -> Result<Operation, CodecError> {
    let hash = Digest::read(buf)?;
    match Record::read(buf)? {
        Record::Entry { key, value } => Ok(Operation::Put { hash, key, value }),
        _ => Err(CodecError::Invalid("operation", "no entry under a key")),
    }
}

fn read_metadata(buf: &mut Bytes) -> Result<Option<CommitMetadata>, CodecError> {
    match Option::<Record>::read_cfg(buf, &())? {
        Some(Record::Commit(metadata)) => Ok(Some(metadata)),
        Some(_) => Err(CodecError::Invalid("operation", "no metadata in a commit")),
        None => Ok(None),
    }
}
