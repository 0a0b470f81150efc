//! Family `current`: like `any`, and proves present values and absence. Ordered, values of
//! variable size.
//!
//! It has two roots. The operations root is over the log, as in every family, and is what state
//! sync is verified against. The canonical root also covers which operations are still active, and
//! is what proofs of keys lead to. The second follows from the operations, but the library's engine
//! compares the first only: whoever adopts a synced database compares both.
//!
//! Ordered, because absence is proved by the two neighbours between which a key would stand.

use super::{
    Error, Fetcher, KeyProof, OpenAt, Operation, State, StateSync, SyncError, family,
    record::Record,
    storage::{self, Location, Merkle, Strategy, Translator},
    store::{Store, forward_to_full_library, forward_to_library, open_and_sync},
    types::{Change, Family},
};
use crate::runtime::Runtime;
use commonware_codec::Encode as _;
use commonware_cryptography::Hasher;
use commonware_runtime::Handle;
use commonware_storage::qmdb::{
    any::{
        ordered::{Update, variable::Operation as OrderedOperation},
        value::VariableEncoding,
    },
    current::{VariableConfig, batch::MerkleizedBatch, ordered::variable as ordered},
    floor::Proportional,
};
use std::sync::Arc;
use syncd_proto::hash::to_plain;

/// Bytes of the activity bitmap that one grafted leaf covers; the library wants a power of two that
/// is a multiple of the digest's length.
const CHUNK_BYTES: usize = 32;

type Db<E, H> =
    ordered::Db<Merkle, E, <H as Hasher>::Digest, Record, H, Translator, CHUNK_BYTES, Strategy>;
pub(super) type Op<H> = OrderedOperation<Merkle, <H as Hasher>::Digest, Record>;
type Batch<H> = MerkleizedBatch<
    Merkle,
    <H as Hasher>::Digest,
    Update<<H as Hasher>::Digest, VariableEncoding<Record>>,
    CHUNK_BYTES,
    Strategy,
>;
/// An open database of family `current`.
pub(super) struct Current<E: Runtime, H: Hasher>(Db<E, H>);

/// Where and how a database of `generation` is kept.
fn config(generation: u64) -> VariableConfig<Translator, ((), ()), Strategy> {
    let (merkle_config, journal_config) = storage::configs(Family::Current, generation);
    VariableConfig {
        merkle_config,
        journal_config,
        grafted_metadata_partition: storage::grafted_partition(generation),
        translator: Translator::default(),
        init_cache: Some(storage::INDEX_CACHE),
        init_buffer: storage::REPLAY_BUFFER,
        init_concurrency: (),
    }
}

open_and_sync!(Current);

/// What an operation of the library says.
pub(super) fn plain<H: Hasher>(operation: Op<H>) -> Result<Operation, Error> {
    use commonware_storage::qmdb::any::operation::Operation as Any;
    match operation {
        Any::Update(Update { key, value, .. }) => family::put::<H>(&key, value),
        Any::Delete(hash) => Ok(Operation::Delete { hash: to_plain::<H>(&hash) }),
        Any::CommitFloor(record, _) => family::commit(record),
    }
}

impl<E: Runtime, H: Hasher> Store for Current<E, H> {
    type Hasher = H;
    type Source = Db<E, H>;
    type Batch = Batch<H>;

    forward_to_library!();
    forward_to_full_library!();

    fn state(&self) -> State {
        State {
            size: *self.0.bounds().end,
            floor: *self.0.sync_boundary(),
            root: to_plain::<H>(&self.0.root()),
            operations_root: to_plain::<H>(&self.0.ops_root()),
        }
    }

    async fn record(&self, key: &H::Digest) -> Result<Option<Record>, Error> {
        Ok(self.0.get(key).await?)
    }

    async fn batch(
        &self,
        parent: Option<Arc<Batch<H>>>,
        changes: &[Change],
        metadata: Record,
    ) -> Result<(State, Arc<Batch<H>>), Error> {
        let mut batch = match &parent {
            Some(parent) => parent.new_batch::<H>(),
            None => self.0.new_batch(),
        };
        for change in changes {
            let (key, record) = family::upsert::<H>(change)?;
            batch = batch.write(key, record);
        }
        let batch = batch.merkleize(&self.0, Some(metadata), &mut Proportional).await?;
        let state = State {
            size: *batch.bounds().tip.size,
            floor: *batch.sync_boundary(),
            root: to_plain::<H>(&batch.root()),
            operations_root: to_plain::<H>(&batch.ops_root()),
        };
        Ok((state, batch))
    }

    fn plain(operation: Op<H>) -> Result<Operation, Error> {
        plain::<H>(operation)
    }

    async fn prove_key(&self, key: &[u8]) -> Result<KeyProof, Error> {
        let hash = H::hash(&[key]);
        let value = family::value(self.record(&hash).await?)?;
        let proof = match &value {
            Some(_) => self.0.key_value_proof(hash).await?.encode(),
            None => self.0.exclusion_proof(&hash).await?.encode(),
        };
        Ok(KeyProof { value, proof })
    }
}
