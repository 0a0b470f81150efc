//! The hash of a database, chosen at run time, and the conversion of its digests.

use crate::types::{DIGEST_LENGTH, Digest};
use commonware_codec::DecodeExt as _;
use commonware_cryptography::Hasher;

/// The plain form of a hasher's digest.
pub fn to_plain<H: Hasher>(digest: &H::Digest) -> Digest {
    let mut bytes = [0; DIGEST_LENGTH];
    bytes.copy_from_slice(digest.as_ref());
    Digest(bytes)
}

/// The hasher's form of a plain digest.
pub fn from_plain<H: Hasher>(digest: Digest) -> H::Digest {
    H::Digest::decode(bytes::Bytes::copy_from_slice(&digest.0))
        .expect("every supported hash has digests of 32 arbitrary bytes")
}
