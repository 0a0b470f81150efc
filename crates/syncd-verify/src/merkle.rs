//! Proofs over the log of operations: that an operation stands at a location, and which nodes stand for
//! everything before one.
//!
//! Nothing in a proof is trusted: it comes from whoever sent it. Trusted is the root it must lead to.

use crate::operation::{self, Encoded};
use bytes::Bytes;
use commonware_codec::{
    Error as CodecError, Read as _, ReadExt as _, ReadRangeExt as _, varint::UInt,
};
use commonware_cryptography::{Blake3, Hasher, Sha256};
use commonware_storage::merkle::{
    self, Bagging, MAX_PINNED_NODES, MAX_PROOF_DIGESTS_PER_ELEMENT, hasher::Standard, mmr,
};
use syncd_proto::{
    database::{Kind, Operation},
    hash::{from_plain, to_plain},
    types::{Digest, Family, HashKind, Root},
};

pub(crate) type Location = mmr::Location;
pub(crate) type Proof<H> = merkle::Proof<mmr::Family, <H as Hasher>::Digest>;

/// First byte of an answer to a request for operations, and for a boundary.
const OPERATIONS: u8 = 0;
const BOUNDARY: u8 = 1;

/// Why a proof proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Its bytes are none.
    #[error("the {what} cannot be decoded: {error}")]
    Malformed {
        /// `proof` or `boundary`.
        what: &'static str,
        /// What the decoder says.
        error: String,
    },
    /// It is a proof of something else.
    #[error("{0}")]
    OfSomethingElse(&'static str),
    /// The location lies outside of the state.
    #[error("there is no operation {location} in a state of {size}")]
    OutOfRange {
        /// The location.
        location: u64,
        /// Operations of the state.
        size: u64,
    },
    /// The family proves no keys.
    #[error("family '{0}' does not prove keys")]
    NotProvable(Family),
    /// An operation that no publisher writes.
    #[error("the operation stores a record under the hash of another key")]
    WrongHash,
    /// It is well-formed, and leads to another root.
    #[error("the {0} does not lead to the root")]
    WrongRoot(&'static str),
}

pub(crate) fn malformed(what: &'static str) -> impl Fn(CodecError) -> Invalid {
    move |error| Invalid::Malformed { what, error: error.to_string() }
}

/// How the library hashes nodes, and folds peaks into a root.
pub(crate) const fn hasher<H: Hasher>() -> Standard<H> {
    Standard::new(Bagging::BackwardFold)
}

/// Nothing may follow what was read.
pub(crate) fn end(buf: &Bytes) -> Result<(), CodecError> {
    match buf.len() {
        0 => Ok(()),
        more => Err(CodecError::ExtraData(more)),
    }
}

/// Verifies that in the state of `size` operations with `operations_root` an operation stands at
/// `location`, and returns what it says.
///
/// # Errors
///
/// See [`Invalid`].
pub fn verify_operation(
    kind: Kind,
    operations_root: Root,
    size: u64,
    location: u64,
    proof: Bytes,
) -> Result<Operation, Invalid> {
    let verify = match kind.hash {
        HashKind::Sha256 => operation_as::<Sha256>,
        HashKind::Blake3 => operation_as::<Blake3>,
    };
    verify(kind.family, operations_root, size, location, proof)
}

fn operation_as<H: Hasher>(
    family: Family,
    operations_root: Root,
    size: u64,
    location: u64,
    mut body: Bytes,
) -> Result<Operation, Invalid> {
    if location >= size {
        return Err(Invalid::OutOfRange { location, size });
    }
    expect(OPERATIONS, "proof", &mut body)?;
    let (proof, Encoded { bytes, operation }) =
        read_operation::<H>(family, &mut body).map_err(malformed("proof"))?;
    let root = from_plain::<H>(operations_root);
    let is_proved = proof.leaves == Location::new(size)
        && proof.verify_range_inclusion(&hasher::<H>(), &[bytes], Location::new(location), &root);
    if !is_proved {
        return Err(Invalid::WrongRoot("proof"));
    }
    match &operation {
        Operation::Put { hash, key, .. } if to_plain::<H>(&H::hash(&[key])) != *hash => {
            Err(Invalid::WrongHash)
        }
        _ => Ok(operation),
    }
}

/// Reads a proof of one operation.
fn read_operation<H: Hasher>(
    family: Family,
    buf: &mut Bytes,
) -> Result<(Proof<H>, Encoded), CodecError> {
    let proof = Proof::<H>::read_cfg(buf, &MAX_PROOF_DIGESTS_PER_ELEMENT)?;
    let count: u32 = UInt::read(buf)?.into();
    if count != 1 {
        return Err(CodecError::InvalidLength(count as usize));
    }
    let encoded = operation::read(family, buf)?;
    end(buf)?;
    Ok((proof, encoded))
}

/// Reads which kind of answer `buf` holds, and refuses the other one.
fn expect(tag: u8, what: &'static str, buf: &mut Bytes) -> Result<(), Invalid> {
    match u8::read(buf).map_err(malformed(what))? {
        found if found == tag => Ok(()),
        BOUNDARY => {
            Err(Invalid::OfSomethingElse("the proof is of a boundary, not of an operation"))
        }
        OPERATIONS => Err(Invalid::OfSomethingElse("operations were sent instead of a boundary")),
        other => Err(malformed(what)(CodecError::InvalidEnum(other))),
    }
}

/// Verifies the answer to a boundary request and returns the Merkle nodes it proves: they stand for
/// everything before `start`.
///
/// # Errors
///
/// See [`Invalid`].
pub fn verify_boundary(
    kind: Kind,
    operations_root: Root,
    size: u64,
    start: u64,
    body: Bytes,
) -> Result<Vec<Digest>, Invalid> {
    let verify = match kind.hash {
        HashKind::Sha256 => boundary_as::<Sha256>,
        HashKind::Blake3 => boundary_as::<Blake3>,
    };
    verify(kind.family, operations_root, size, start, body)
}

fn boundary_as<H: Hasher>(
    family: Family,
    operations_root: Root,
    size: u64,
    start: u64,
    mut body: Bytes,
) -> Result<Vec<Digest>, Invalid> {
    expect(BOUNDARY, "boundary", &mut body)?;
    let Boundary { proof, encoded, nodes } =
        read_boundary::<H>(family, &mut body).map_err(malformed("boundary"))?;
    let is_proved = proof.leaves == Location::new(size)
        && proof.verify_proof_and_pinned_nodes(
            &hasher::<H>(),
            &[encoded.bytes],
            Location::new(start),
            &nodes,
            &from_plain::<H>(operations_root),
        );
    if !is_proved {
        return Err(Invalid::WrongRoot("boundary"));
    }
    Ok(nodes.iter().map(to_plain::<H>).collect())
}

/// A proof of the operation at a boundary, and of the nodes that stand for everything before it.
struct Boundary<H: Hasher> {
    proof: Proof<H>,
    encoded: Encoded,
    nodes: Vec<H::Digest>,
}

fn read_boundary<H: Hasher>(family: Family, buf: &mut Bytes) -> Result<Boundary<H>, CodecError> {
    let proof = Proof::<H>::read_cfg(buf, &MAX_PROOF_DIGESTS_PER_ELEMENT)?;
    let encoded = operation::read(family, buf)?;
    let nodes = Vec::read_range(buf, ..=MAX_PINNED_NODES)?;
    end(buf)?;
    Ok(Boundary { proof, encoded, nodes })
}

/// The roots that a history of `size` operations may have had when it had `start`, from the answer
/// to a boundary request: one for each way in which its floor may have divided it.
///
/// # Errors
///
/// See [`Invalid`].
pub fn history_at(
    kind: Kind,
    operations_root: Root,
    size: u64,
    start: u64,
    body: Bytes,
) -> Result<Vec<Root>, Invalid> {
    let nodes = verify_boundary(kind, operations_root, size, start, body)?;
    Ok(match kind.hash {
        HashKind::Sha256 => roots::<Sha256>(start, &nodes),
        HashKind::Blake3 => roots::<Blake3>(start, &nodes),
    })
}

/// The roots over `nodes`, which stand for the first `size` operations, for every number of them
/// that may lie below the floor.
fn roots<H: Hasher>(size: u64, nodes: &[Digest]) -> Vec<Root> {
    let hasher = hasher::<H>();
    let nodes: Vec<H::Digest> = nodes.iter().map(|node| from_plain::<H>(*node)).collect();
    (0..=nodes.len())
        .filter_map(|inactive| {
            merkle::hasher::Hasher::<mmr::Family>::root(
                &hasher,
                Location::new(size),
                inactive,
                &nodes,
            )
            .ok()
        })
        .map(|root| to_plain::<H>(&root))
        .collect()
}
