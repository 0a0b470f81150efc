//! Verifies what was proved, without a database, storage or runtime.
//!
//! Nothing in a proof is trusted: it comes from whoever sent it. Trusted is the root it must lead
//! to, which the caller took from a checkpoint whose signature it verified. Decoding is bounded by
//! how many digests one element's proof can need, and no input makes these functions panic.

use super::{
    Kind, any, current, family, immutable, keyless,
    types::{Digest, Family, HashKind, Root},
};
use bytes::Bytes;
use commonware_cryptography::{Blake3, Hasher, Sha256};

/// Verifies the answer to a boundary request and returns the Merkle nodes it proves.
///
/// # Errors
///
/// The text says what is wrong with the answer.
pub fn verify_boundary(
    kind: Kind,
    operations_root: Root,
    size: u64,
    start: u64,
    body: Bytes,
) -> Result<Vec<Digest>, String> {
    let verify = match kind.hash {
        HashKind::Sha256 => boundary::<Sha256>,
        HashKind::Blake3 => boundary::<Blake3>,
    };
    verify(kind.family, operations_root, size, start, body)
}

fn boundary<H: Hasher>(
    family: Family,
    operations_root: Root,
    size: u64,
    start: u64,
    body: Bytes,
) -> Result<Vec<Digest>, String> {
    let verify = match family {
        Family::Any => family::verify_boundary::<H, any::Op<H>>,
        Family::Immutable => family::verify_boundary::<H, immutable::Op<H>>,
        Family::Keyless => family::verify_boundary::<H, keyless::Op>,
        Family::Current => family::verify_boundary::<H, current::Op<H>>,
    };
    verify(operations_root, size, start, body)
}
