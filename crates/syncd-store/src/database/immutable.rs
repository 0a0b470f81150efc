//! Family `immutable`: a key is set once and stays. Values of variable size.
//!
//! The library lets a second set shadow the first, and keys below the floor vanish when the
//! storage is opened again: so the floor stays at 0, and conflicts are refused before a batch is
//! made.

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
    any::value::VariableEncoding,
    immutable::{batch::MerkleizedBatch, variable as immutable},
};
use std::sync::Arc;

/// Nothing is ever declared inactive.
pub(super) const FLOOR: Location = Location::new(0);

type Db<E, H> = immutable::Db<Merkle, E, <H as Hasher>::Digest, Record, H, Translator, Strategy>;
pub(super) type Op<H> = immutable::Operation<Merkle, <H as Hasher>::Digest, Record>;
type Batch<H> = MerkleizedBatch<
    Merkle,
    <H as Hasher>::Digest,
    <H as Hasher>::Digest,
    VariableEncoding<Record>,
    Strategy,
>;

/// An open database of family `immutable`.
pub(super) struct Immutable<E: Runtime, H: Hasher>(Db<E, H>);

/// Where and how a database of `generation` is kept.
fn config(generation: u64) -> immutable::Config<Translator, ((), ()), Strategy> {
    let (merkle_config, log) = storage::configs(Family::Immutable, generation);
    immutable::Config {
        merkle_config,
        log,
        translator: Translator::default(),
        init_buffer: storage::REPLAY_BUFFER,
    }
}

open_and_sync!(Immutable);

/// The entry that a change adds.
pub(super) fn addition<H: Hasher>(change: &Change) -> Result<(H::Digest, Record), Error> {
    match change {
        Change::Put { key, value } => Ok((H::hash(&[key]), family::entry(key, value))),
        Change::Delete { .. } => Err(Error::Unsupported("family 'immutable' has no delete")),
        Change::Append { .. } => Err(Error::Unsupported("family 'immutable' has no append")),
    }
}

/// What an operation of the library says.
pub(super) fn plain<H: Hasher>(operation: Op<H>) -> Result<Operation, Error> {
    use commonware_storage::qmdb::immutable::Operation as Immutable;
    match operation {
        Immutable::Set(hash, record) => family::put::<H>(&hash, record),
        Immutable::Commit(record, _) => family::commit(record),
    }
}

impl<E: Runtime, H: Hasher> Store for Immutable<E, H> {
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
            let (key, record) = addition::<H>(change)?;
            batch = batch.set(key, record);
        }
        let batch = batch.merkleize(&self.0, Some(metadata), FLOOR).await?;
        Ok((family::tip::<H>(batch.bounds()), batch))
    }

    fn plain(operation: Op<H>) -> Result<Operation, Error> {
        plain::<H>(operation)
    }
}
