//! Verifies what was proved, without a database, storage or runtime.
//!
//! Nothing in a proof is trusted: it comes from whoever sent it. Trusted is the root it must lead
//! to, which the caller took from a checkpoint whose signature it verified. Decoding is bounded by
//! how many digests one element's proof can need, and no input makes these functions panic.

use super::{
    Error, Fetch, Kind, Operation, any, current, family,
    hash::{from_plain, to_plain},
    immutable, keyless,
    source::response_config,
    storage::{Location, Merkle},
    types::{Digest, Family, HashKind, Root},
};
use bytes::Bytes;
use commonware_codec::{Decode as _, Encode, Read};
use commonware_cryptography::{Blake3, Hasher, Sha256};
use commonware_storage::{
    merkle::MAX_PROOF_DIGESTS_PER_ELEMENT,
    qmdb::{self, any::value::VariableEncoding, sync::source::Response},
};
use std::num::NonZeroU64;

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

/// The roots that a history of `size` operations may have had when it had `start`, from the answer
/// to a boundary request: one for each way in which its floor may have divided it.
///
/// # Errors
///
/// The text says what is wrong with the answer.
pub fn history_at(
    kind: Kind,
    operations_root: Root,
    size: u64,
    start: u64,
    body: Bytes,
) -> Result<Vec<Root>, String> {
    let nodes = verify_boundary(kind, operations_root, size, start, body)?;
    Ok(match kind.hash {
        HashKind::Sha256 => family::roots::<Sha256>(start, &nodes),
        HashKind::Blake3 => family::roots::<Blake3>(start, &nodes),
    })
}

/// Verifies that in the state of `size` operations with `operations_root` an operation stands at
/// `location`, and returns what it says. `proof` is what
/// [`Database::prove_operation`](super::Database::prove_operation) gave.
///
/// # Errors
///
/// The text says what is wrong with the proof.
pub fn verify_operation(
    kind: Kind,
    operations_root: Root,
    size: u64,
    location: u64,
    proof: Bytes,
) -> Result<Operation, String> {
    let verify = match kind.hash {
        HashKind::Sha256 => operation::<Sha256>,
        HashKind::Blake3 => operation::<Blake3>,
    };
    verify(kind.family, operations_root, size, location, proof)
}

fn operation<H: Hasher>(
    family: Family,
    root: Root,
    size: u64,
    location: u64,
    proof: Bytes,
) -> Result<Operation, String> {
    let operation = match family {
        Family::Any => operation_as::<H, _>(any::plain::<H>, root, size, location, proof),
        Family::Current => operation_as::<H, _>(current::plain::<H>, root, size, location, proof),
        Family::Immutable => {
            operation_as::<H, _>(immutable::plain::<H>, root, size, location, proof)
        }
        Family::Keyless => operation_as::<H, _>(keyless::plain, root, size, location, proof),
    }?;
    match &operation {
        Operation::Put { hash, key, .. } if to_plain::<H>(&H::hash(&[key])) != *hash => {
            Err("the operation stores a record under the hash of another key".into())
        }
        _ => Ok(operation),
    }
}

fn operation_as<H, Op>(
    plain: fn(Op) -> Result<Operation, Error>,
    operations_root: Root,
    size: u64,
    location: u64,
    proof: Bytes,
) -> Result<Operation, String>
where
    H: Hasher,
    Op: Read<Cfg: Default> + Encode,
{
    if location >= size {
        return Err(format!("there is no operation {location} in a state of {size}"));
    }
    let fetch = Fetch::Operations { size, start: location, max: NonZeroU64::MIN };
    let response = Response::<Merkle, Op, H::Digest>::decode_cfg(proof, &response_config(&fetch))
        .map_err(|error| format!("the proof cannot be decoded: {error}"))?;
    let Response::Operations { proof, mut operations } = response else {
        return Err("the proof is of a boundary, not of an operation".into());
    };
    let root = from_plain::<H>(operations_root);
    let proved = operations.len() == 1
        && proof.leaves == Location::new(size)
        && qmdb::verify_proof::<H, _, _>(&proof, Location::new(location), &operations, &root);
    match operations.pop() {
        Some(operation) if proved => plain(operation).map_err(|error| error.to_string()),
        _ => Err("the proof does not lead to the root".into()),
    }
}

/// Verifies that in the state with the canonical `root` the user's `key` has `value`, or that it
/// is absent if `value` is `None`. `proof` is what
/// [`Database::prove_key`](super::Database::prove_key) gave.
///
/// # Errors
///
/// The text says what is wrong with the proof; no proof is accepted for a family that cannot
/// prove keys.
pub fn verify_key(
    kind: Kind,
    root: Root,
    key: &[u8],
    value: Option<&[u8]>,
    proof: Bytes,
) -> Result<(), String> {
    if kind.family != Family::Current {
        return Err(format!("family '{}' does not prove keys", kind.family));
    }
    let verify = match kind.hash {
        HashKind::Sha256 => key_as::<Sha256>,
        HashKind::Blake3 => key_as::<Blake3>,
    };
    verify(root, key, value, proof)
}

fn key_as<H: Hasher>(
    root: Root,
    key: &[u8],
    value: Option<&[u8]>,
    proof: Bytes,
) -> Result<(), String> {
    const DIGESTS_MAX: usize = MAX_PROOF_DIGESTS_PER_ELEMENT;
    let hash = H::hash(&[key]);
    let root = from_plain::<H>(root);
    let undecodable = |error| format!("the proof cannot be decoded: {error}");
    let proved = match value {
        Some(value) => current::ValueProof::<H>::decode_cfg(proof, &(DIGESTS_MAX, ()))
            .map_err(undecodable)?
            .verify::<H, VariableEncoding<_>>(hash, family::entry(key, value), &root),
        None => current::AbsenceProof::<H>::decode_cfg(proof, &(DIGESTS_MAX, ((), ()), ()))
            .map_err(undecodable)?
            .verify::<H>(&hash, &root),
    };
    if proved { Ok(()) } else { Err("the proof does not lead to the root".into()) }
}
