//! Proofs of keys in family `current`: that a key has a value, or is absent, in a state.
//!
//! That family's root covers two trees: the log of operations, and the same tree with a bitmap grafted onto
//! it that says which operations are active. A bitmap's chunk of 256 bits is hashed into the node above the
//! 256 operations that it speaks of. The root is
//! `hash(operations root ‖ grafted root [‖ bits in the last chunk ‖ hash of the last chunk])`, the
//! last two where the last chunk is not full.
//!
//! A key has a value if the operation that set it is active; it is absent if an active operation sets the key
//! before it in the order of hashes and names the key after it as the next one.

use crate::{
    merkle::{Invalid, Location, Proof, end, hasher, malformed},
    operation::{COMMIT, UPDATE},
};
use bytes::{BufMut as _, Bytes, BytesMut};
use commonware_codec::{Error as CodecError, Read, ReadExt as _, Write as _};
use commonware_cryptography::{Blake3, Hasher, Sha256};
use commonware_storage::merkle::{
    self, Bagging, Family as _, Graftable as _, MAX_PROOF_DIGESTS_PER_ELEMENT, Position, mmr,
};
use syncd_proto::{
    database::Kind,
    hash::to_plain,
    record::Record,
    types::{Digest, Family, HashKind, Root},
};

/// Bytes of the bitmap in one chunk, and how high above the operations a chunk is grafted.
const CHUNK_BYTES: usize = 32;
const CHUNK_BITS: u64 = 8 * CHUNK_BYTES as u64;
const GRAFTING_HEIGHT: u32 = CHUNK_BITS.trailing_zeros();
/// First byte of a proof of absence: by the key before it, or by a database without keys.
const BY_NEIGHBOUR: u8 = 0;
const BY_EMPTINESS: u8 = 1;

/// Verifies that in the state with the canonical `root` the user's `key` has `value`, or that it
/// is absent if `value` is `None`.
///
/// # Errors
///
/// See [`Invalid`]; no proof is accepted for a family that cannot prove keys.
pub fn verify_key(
    kind: Kind,
    root: Root,
    key: &[u8],
    value: Option<&[u8]>,
    proof: Bytes,
) -> Result<(), Invalid> {
    if kind.family != Family::Current {
        return Err(Invalid::NotProvable(kind.family));
    }
    let proved = match kind.hash {
        HashKind::Sha256 => root_of::<Sha256>(key, value, proof),
        HashKind::Blake3 => root_of::<Blake3>(key, value, proof),
    };
    match proved.map_err(malformed("proof"))? {
        Some(proved) if proved == root => Ok(()),
        _ => Err(Invalid::WrongRoot("proof")),
    }
}

/// The root that the proof leads to, if it leads anywhere.
fn root_of<H: Hasher>(
    key: &[u8],
    value: Option<&[u8]>,
    mut proof: Bytes,
) -> Result<Option<Root>, CodecError> {
    let hash = to_plain::<H>(&H::hash(&[key]));
    let root = match value {
        Some(value) => root_of_value::<H>(hash, key, value, &mut proof)?,
        None => root_of_absence::<H>(hash, &mut proof)?,
    };
    end(&proof)?;
    Ok(root.map(|root| to_plain::<H>(&root)))
}

fn root_of_value<H: Hasher>(
    hash: Digest,
    key: &[u8],
    value: &[u8],
    buf: &mut Bytes,
) -> Result<Option<H::Digest>, CodecError> {
    let proof = Active::<H>::read(buf)?;
    let next = Digest::read(buf)?;
    let mut element = BytesMut::new();
    UPDATE.write(&mut element);
    hash.write(&mut element);
    let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    Record::Entry { key, value }.write(&mut element);
    next.write(&mut element);
    Ok(proof.root(&element))
}

fn root_of_absence<H: Hasher>(
    hash: Digest,
    buf: &mut Bytes,
) -> Result<Option<H::Digest>, CodecError> {
    let by = u8::read(buf)?;
    let proof = Active::<H>::read(buf)?;
    let rest = buf.clone();
    let mut element = BytesMut::new();
    match by {
        BY_NEIGHBOUR => {
            let neighbour = Digest::read(buf)?;
            Record::read(buf)?;
            let next = Digest::read(buf)?;
            if !lies_between(hash, neighbour, next) {
                return Ok(None);
            }
            UPDATE.write(&mut element);
            element.put_slice(&rest[..rest.len() - buf.len()]);
        }
        BY_EMPTINESS => {
            Option::<Record>::read_cfg(buf, &())?;
            COMMIT.write(&mut element);
            element.put_slice(&rest[..rest.len() - buf.len()]);
            // No key is active before the commit whose floor is its own location.
            proof.location.write(&mut element);
        }
        other => return Err(CodecError::InvalidEnum(other)),
    }
    Ok(proof.root(&element))
}

/// Whether `hash` lies strictly after `start` and before `end`, in an order that goes round.
fn lies_between(hash: Digest, start: Digest, end: Digest) -> bool {
    if start < end { start < hash && hash < end } else { start < hash || hash < end }
}

/// A proof that an operation is active.
struct Active<H: Hasher> {
    location: Location,
    /// The chunk of the bitmap that speaks of it.
    chunk: [u8; CHUNK_BYTES],
    proof: Proof<H>,
    /// Digest of the last chunk, if that is not full.
    partial_chunk: Option<H::Digest>,
    operations_root: H::Digest,
}

impl<H: Hasher> Active<H> {
    fn read(buf: &mut Bytes) -> Result<Self, CodecError> {
        Ok(Self {
            location: Location::read(buf)?,
            chunk: <[u8; CHUNK_BYTES]>::read(buf)?,
            proof: Proof::<H>::read_cfg(buf, &MAX_PROOF_DIGESTS_PER_ELEMENT)?,
            partial_chunk: Option::read(buf)?,
            operations_root: H::Digest::read(buf)?,
        })
    }

    /// The root of the state in which `element` is the active operation at the location.
    fn root(&self, element: &[u8]) -> Option<H::Digest> {
        let (location, leaves) = (*self.location, *self.proof.leaves);
        let bit = location % CHUNK_BITS;
        let is_active = self.chunk[(bit / 8) as usize] & (1 << (bit % 8)) != 0;
        if !is_active || location >= leaves {
            return None;
        }
        let (index, full, bits) = (location / CHUNK_BITS, leaves / CHUNK_BITS, leaves % CHUNK_BITS);
        if self.partial_chunk.is_some() != (bits != 0) {
            return None;
        }
        if index == full && self.partial_chunk != Some(H::hash(&[&self.chunk])) {
            return None;
        }
        let hasher =
            Grafting::<H> { chunk: (index < full).then_some((index, self.chunk)), inner: hasher() };
        let grafted = self.proof.reconstruct_root(&hasher, &[element], self.location).ok()?;
        let (operations, grafted): (&[u8], &[u8]) =
            (self.operations_root.as_ref(), grafted.as_ref());
        Some(match &self.partial_chunk {
            None => H::hash(&[operations, grafted]),
            Some(chunk) => H::hash(&[operations, grafted, &bits.to_be_bytes(), chunk.as_ref()]),
        })
    }
}

/// Hashes the tree with the bitmap: as the other one, but for the nodes that stand for a full chunk.
struct Grafting<H: Hasher> {
    /// Index and content of the chunk on the way to the operation, if it is full.
    chunk: Option<(u64, [u8; CHUNK_BYTES])>,
    inner: merkle::hasher::Standard<H>,
}

impl<H: Hasher> Clone for Grafting<H> {
    fn clone(&self) -> Self {
        Self { chunk: self.chunk, inner: self.inner.clone() }
    }
}

impl<H: Hasher> merkle::hasher::Hasher<mmr::Family> for Grafting<H> {
    type Digest = H::Digest;

    fn hash(&self, parts: &[&[u8]]) -> H::Digest {
        H::hash(parts)
    }

    fn root_bagging(&self) -> Bagging {
        self.inner.root_bagging()
    }

    fn node_digest(
        &self,
        position: Position<mmr::Family>,
        left: &H::Digest,
        right: &H::Digest,
    ) -> H::Digest {
        let node = self.inner.node_digest(position, left, right);
        match self.chunk {
            Some((index, chunk))
                if mmr::Family::pos_to_height(position) == GRAFTING_HEIGHT
                    && *mmr::Family::leftmost_leaf(position, GRAFTING_HEIGHT) / CHUNK_BITS
                        == index =>
            {
                H::hash(&[&chunk, node.as_ref()])
            }
            _ => node,
        }
    }

    fn node_digest_pair(
        &self,
        [first, second]: [(Position<mmr::Family>, &H::Digest, &H::Digest); 2],
    ) -> (H::Digest, H::Digest) {
        (
            self.node_digest(first.0, first.1, first.2),
            self.node_digest(second.0, second.1, second.2),
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    type Proof = merkle::Proof<mmr::Family, <Sha256 as Hasher>::Digest>;

    fn digest(byte: u8) -> Digest {
        Digest([byte; 32])
    }

    #[test]
    fn what_lies_between_goes_round() {
        for (key, start, end, lies) in [
            (5, 4, 6, true),
            (4, 4, 6, false),
            (6, 4, 6, false),
            (3, 4, 6, false),
            (7, 4, 6, false),
            // From the last key round to the first.
            (9, 8, 2, true),
            (1, 8, 2, true),
            (8, 8, 2, false),
            (2, 8, 2, false),
            (5, 8, 2, false),
            // The only key there is.
            (4, 5, 5, true),
            (6, 5, 5, true),
            (5, 5, 5, false),
        ] {
            let found = lies_between(digest(key), digest(start), digest(end));
            assert_eq!(found, lies, "{key} between {start} and {end}");
        }
    }

    /// A proof that operation `location` of `leaves` is active, by a chunk of the bitmap that says whatever it says.
    fn active(location: u64, leaves: u64, chunk: [u8; CHUNK_BYTES]) -> Active<Sha256> {
        // Of two leaves the other one, of one none.
        let digests = (1..leaves.min(2)).map(|_| Sha256::hash(&[b"sibling"])).collect();
        Active {
            location: Location::new(location),
            chunk,
            proof: Proof { leaves: Location::new(leaves), inactive_peaks: 0, digests },
            partial_chunk: Some(Sha256::hash(&[&chunk])),
            operations_root: Sha256::hash(&[b"operations"]),
        }
    }

    /// Also where the chunk is the one that the root covers, an operation whose bit is not set proves nothing: it was
    /// superseded.
    #[test]
    fn a_superseded_operation_proves_nothing() {
        for location in [0u64, 1] {
            let only = |bits: u8| {
                let mut chunk = [0; CHUNK_BYTES];
                chunk[0] = bits;
                active(location, 2, chunk).root(b"operation").is_some()
            };
            let own = 1u8 << location;
            assert!(only(own) && only(0xff));
            assert!(!only(0) && !only(!own));
        }
        let mut elsewhere = [0xff; CHUNK_BYTES];
        elsewhere[1] = 0;
        assert!(
            active(9, 10, elsewhere).root(b"operation").is_none(),
            "the bit of its own byte counts"
        );
    }

    #[test]
    fn the_last_chunk_is_named_exactly_where_it_is_not_full() {
        let full = [0xff; CHUNK_BYTES];
        let proof = active(0, 2, full);
        assert!(proof.root(b"operation").is_some());
        let beyond = Active { location: Location::new(2), ..active(0, 2, full) };
        assert!(beyond.root(b"operation").is_none(), "there is no such operation");
        let missing = Active { partial_chunk: None, ..active(0, 2, full) };
        assert!(missing.root(b"operation").is_none());
        let another =
            Active { partial_chunk: Some(Sha256::hash(&[b"another"])), ..active(0, 2, full) };
        assert!(another.root(b"operation").is_none());
        // The bits in the last chunk and its digest are part of the root.
        let mut fewer = full;
        fewer[31] = 0;
        assert_ne!(active(0, 2, full).root(b"operation"), active(0, 2, fewer).root(b"operation"));
    }
}
