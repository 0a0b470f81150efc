//! Family `any`: keys are set, overwritten and deleted. Unordered, values of variable size.

use super::{
    Error, Fetcher, OpenAt, Operation, State, StateSync, SyncError, family,
    record::Record,
    storage::{self, Location, Merkle, Strategy, Translator},
    store::{Store, forward_to_full_library, forward_to_library, open_and_sync},
    types::{Change, Family},
};
use crate::runtime::Runtime;
use commonware_cryptography::Hasher;
use commonware_runtime::Handle;
use commonware_storage::qmdb::{
    any::{VariableConfig, batch::MerkleizedBatch, unordered::variable as unordered},
    floor::Proportional,
};
use std::sync::Arc;
use syncd_proto::hash::to_plain;

type Db<E, H> = unordered::Db<Merkle, E, <H as Hasher>::Digest, Record, H, Translator, Strategy>;
pub(super) type Op<H> = unordered::Operation<Merkle, <H as Hasher>::Digest, Record>;
type Batch<H> = MerkleizedBatch<
    Merkle,
    <H as Hasher>::Digest,
    unordered::Update<<H as Hasher>::Digest, Record>,
    Strategy,
>;

/// An open database of family `any`.
pub(super) struct Any<E: Runtime, H: Hasher>(Db<E, H>);

/// Where and how a database of `generation` is kept.
fn config(generation: u64) -> VariableConfig<Translator, ((), ()), Strategy> {
    let (merkle_config, journal_config) = storage::configs(Family::Any, generation);
    VariableConfig {
        merkle_config,
        journal_config,
        translator: Translator::default(),
        init_cache: Some(storage::INDEX_CACHE),
        init_buffer: storage::REPLAY_BUFFER,
        init_concurrency: (),
    }
}

open_and_sync!(Any);

/// What an operation of the library says.
pub(super) fn plain<H: Hasher>(operation: Op<H>) -> Result<Operation, Error> {
    use commonware_storage::qmdb::any::{operation::Operation as Any, unordered::Update};
    match operation {
        Any::Update(Update(hash, record)) => family::put::<H>(&hash, record),
        Any::Delete(hash) => Ok(Operation::Delete { hash: to_plain::<H>(&hash) }),
        Any::CommitFloor(record, _) => family::commit(record),
    }
}

impl<E: Runtime, H: Hasher> Store for Any<E, H> {
    type Hasher = H;
    type Source = Db<E, H>;
    type Batch = Batch<H>;

    forward_to_library!();
    forward_to_full_library!();

    fn state(&self) -> State {
        family::state::<H>(self.0.bounds().end, self.0.sync_boundary(), &self.0.root())
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
        Ok((family::tip::<H>(batch.bounds()), batch))
    }

    fn plain(operation: Op<H>) -> Result<Operation, Error> {
        plain::<H>(operation)
    }
}
