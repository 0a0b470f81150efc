//! Family `current`: as `any`, and whether an operation is still the present one is part of the
//! root, so that a key's present value, and its absence, can be proved. Ordered: absence is proved
//! by the key's neighbour.
//!
//! There are two roots. State sync works on the one over the operations; readers' proofs lead to
//! the canonical one, over operations and activity. A checkpoint signs both.

use super::{
    Database, Error, Fetch, Fetcher, KeyProof, OpenAt, Operation, Prepared, Served, State,
    StateSync, SyncError, family,
    family::Slot,
    hash::{from_plain, to_plain},
    record::{CommitMetadata, Record},
    storage::{self, Location, Merkle, Strategy, Translator},
    types::{Change, Digest, Family, Root},
};
use crate::runtime::Runtime;
use bytes::Bytes;
use commonware_codec::{Decode as _, Encode as _};
use commonware_cryptography::Hasher;
use commonware_runtime::Handle;
use commonware_storage::{
    merkle::MAX_PROOF_DIGESTS_PER_ELEMENT,
    qmdb::{
        any::{ordered::variable as operations, value::VariableEncoding},
        current::{
            VariableConfig,
            batch::MerkleizedBatch,
            ordered::{proof::constant, variable as ordered},
        },
        floor::Proportional,
    },
};
use std::{num::NonZeroU64, sync::Arc};

/// Bytes of a chunk of the activity bitmap: a digest's, as the library demands.
pub(super) const CHUNK: usize = 32;

type Db<E, H> =
    ordered::Db<Merkle, E, <H as Hasher>::Digest, Record, H, Translator, CHUNK, Strategy>;
/// An operation of the log.
pub(super) type Op<H> = operations::Operation<Merkle, <H as Hasher>::Digest, Record>;
type Batch<H> = MerkleizedBatch<
    Merkle,
    <H as Hasher>::Digest,
    operations::Update<<H as Hasher>::Digest, Record>,
    CHUNK,
    Strategy,
>;

/// An open database of family `current`.
struct Current<E: Runtime, H: Hasher>(Slot<Db<E, H>>);

fn config(generation: u64) -> VariableConfig<Translator, ((), ()), Strategy> {
    let (merkle_config, journal_config) = storage::configs(Family::Current, generation, ((), ()));
    VariableConfig {
        merkle_config,
        journal_config,
        grafted_metadata_partition: storage::grafted_partition(Family::Current, generation),
        translator: Translator::default(),
        init_cache: Some(storage::INDEX_CACHE),
        init_buffer: storage::REPLAY_BUFFER,
        init_concurrency: (),
    }
}

pub(super) async fn open<E: Runtime, H: Hasher>(
    context: E,
    generation: u64,
    at: OpenAt,
) -> Result<Box<dyn Database>, Error> {
    let max = match at {
        OpenAt::Latest => None,
        OpenAt::AtMost(size) => Some(Location::new(size)),
    };
    let db = Db::<E, H>::init(context, config(generation), max).await?;
    Ok(Box::new(Current(Slot::new(db))))
}

pub(super) async fn sync<E: Runtime, H: Hasher>(
    context: E,
    generation: u64,
    target: StateSync,
    fetcher: Arc<dyn Fetcher>,
) -> Result<Box<dyn Database>, SyncError> {
    let db: Db<E, H> =
        family::sync::<_, E, H>(context, config(generation), &target, fetcher).await?;
    Ok(Box::new(Current(Slot::new(db))))
}

pub(super) fn verify_boundary<H: Hasher>(
    operations_root: Root,
    size: u64,
    start: u64,
    body: Bytes,
) -> Result<Vec<Digest>, String> {
    family::verify_boundary::<H, Op<H>>(operations_root, size, start, body)
}

/// Proofs of presence and of absence.
type ValueProof<H> =
    constant::KeyValueProof<Merkle, <H as Hasher>::Digest, <H as Hasher>::Digest, CHUNK>;
type AbsenceProof<H> = constant::ExclusionProof<
    Merkle,
    <H as Hasher>::Digest,
    VariableEncoding<Record>,
    <H as Hasher>::Digest,
    CHUNK,
>;

pub(super) fn verify_key<H: Hasher>(
    root: Root,
    key: &[u8],
    value: Option<&[u8]>,
    proof: Bytes,
) -> Result<(), String> {
    let undecodable = |error| format!("the proof cannot be decoded: {error}");
    let (root, hash) = (from_plain::<H>(root), H::hash(&[key]));
    let digests = MAX_PROOF_DIGESTS_PER_ELEMENT;
    let proved = match value {
        Some(value) => {
            let proof = ValueProof::<H>::decode_cfg(proof, &(digests, ())).map_err(undecodable)?;
            let record = Record::Entry {
                key: Bytes::copy_from_slice(key),
                value: Bytes::copy_from_slice(value),
            };
            proof.verify::<H, VariableEncoding<Record>>(hash, record, &root)
        }
        None => {
            let config = (digests, ((), ()), ());
            let proof = AbsenceProof::<H>::decode_cfg(proof, &config).map_err(undecodable)?;
            proof.verify::<H>(&hash, &root)
        }
    };
    if proved { Ok(()) } else { Err("the proof does not lead to the signed root".into()) }
}

pub(super) fn verify_operation<H: Hasher>(
    operations_root: Root,
    size: u64,
    location: u64,
    body: Bytes,
) -> Result<Operation, String> {
    let found = family::verify_operation::<H, Op<H>>(operations_root, size, location, body)?;
    Ok(plain_operation::<H>(found))
}

fn plain_operation<H: Hasher>(operation: Op<H>) -> Operation {
    use commonware_storage::qmdb::any::{operation::Operation as Any, ordered::Update};
    match operation {
        Any::Update(Update { key: hash, value: Record::Entry { key, value }, .. }) => {
            Operation::Put { hash: to_plain::<H>(&hash), key, value }
        }
        Any::Delete(hash) => Operation::Delete { hash: to_plain::<H>(&hash) },
        // No writer stores metadata under a key.
        Any::Update(Update { value: Record::Commit(_), .. }) | Any::CommitFloor(..) => {
            Operation::Commit
        }
    }
}

#[async_trait::async_trait]
impl<E: Runtime, H: Hasher> Database for Current<E, H> {
    fn state(&self) -> Result<State, Error> {
        let db = self.0.get()?;
        Ok(State {
            size: *db.bounds().end,
            floor: *db.sync_boundary(),
            root: to_plain::<H>(&db.root()),
            operations_root: to_plain::<H>(&db.ops_root()),
        })
    }

    fn retained_from(&self) -> Result<u64, Error> {
        Ok(*self.0.get()?.bounds().start)
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        match self.0.get()?.get(&H::hash(&[key])).await? {
            Some(Record::Entry { value, .. }) => Ok(Some(value)),
            Some(Record::Commit(_)) => Err(Error::Corrupt("metadata under a key".into())),
            None => Ok(None),
        }
    }

    async fn metadata(&self) -> Result<Option<CommitMetadata>, Error> {
        match self.0.get()?.get_metadata().await? {
            Some(Record::Commit(metadata)) => Ok(Some(metadata)),
            Some(Record::Entry { .. }) => Err(Error::Corrupt("an entry as metadata".into())),
            None => Ok(None),
        }
    }

    async fn prepare(
        &self,
        parent: Option<&Prepared>,
        changes: &[Change],
        metadata: CommitMetadata,
    ) -> Result<Prepared, Error> {
        let db = self.0.get()?;
        let parent = parent.map(family::batch::<Batch<H>>).transpose()?;
        let mut batch = match &parent {
            Some(parent) => parent.new_batch::<H>(),
            None => db.new_batch(),
        };
        for change in changes {
            batch = match change {
                Change::Put { key, value } => batch.write(
                    H::hash(&[key]),
                    Some(Record::Entry {
                        key: Bytes::copy_from_slice(key),
                        value: Bytes::copy_from_slice(value),
                    }),
                ),
                Change::Delete { key } => batch.write(H::hash(&[key]), None),
                Change::Append { .. } => {
                    return Err(Error::Unsupported("family 'current' has no append"));
                }
            };
        }
        let batch = batch.merkleize(db, Some(Record::Commit(metadata)), &mut Proportional).await?;
        let state = State {
            size: *batch.bounds().tip.size,
            floor: *batch.sync_boundary(),
            root: to_plain::<H>(&batch.root()),
            operations_root: to_plain::<H>(&batch.ops_root()),
        };
        Ok(Prepared { state, batch })
    }

    async fn apply(&mut self, prepared: Prepared) -> Result<(), Error> {
        let batch = family::batch::<Batch<H>>(&prepared)?;
        self.0.get()?.validate_batch(&batch)?;
        self.0.mutate(|db| async { Ok::<_, Error>((db.apply_batch(batch).await?, ())) }).await
    }

    async fn start_sync(&mut self) -> Result<Handle<()>, Error> {
        self.0.mutate(|db| db.start_sync()).await
    }

    async fn sync(&mut self) -> Result<(), Error> {
        self.0.mutate(|db| async { Ok::<_, Error>((db.sync().await?, ())) }).await
    }

    async fn prune(&mut self, location: u64) -> Result<(), Error> {
        let location = Location::new(location);
        self.0.mutate(|db| async move { Ok::<_, Error>((db.prune(location).await?, ())) }).await
    }

    async fn serve(&self, fetch: Fetch, bytes_max: usize) -> Result<Served, Error> {
        self.0.serve(fetch, bytes_max).await
    }

    async fn prove_key(&self, key: &[u8]) -> Result<KeyProof, Error> {
        let (db, hash) = (self.0.get()?, H::hash(&[key]));
        match self.get(key).await? {
            Some(value) => {
                let proof = db.key_value_proof(hash).await?.encode();
                Ok(KeyProof { value: Some(value), proof })
            }
            None => Ok(KeyProof { value: None, proof: db.exclusion_proof(&hash).await?.encode() }),
        }
    }

    async fn operations(
        &self,
        size: u64,
        start: u64,
        max: NonZeroU64,
    ) -> Result<Vec<Operation>, Error> {
        family::operations(self.0.get()?, size, start, max, plain_operation::<H>).await
    }
}
