//! Family `immutable`: a key is set once and stays. Values of variable size.
//!
//! The library lets a second set shadow the first, and keys below the floor vanish when the
//! storage is opened again: so the floor stays at 0, and conflicts are refused before a batch is
//! made.

use super::{
    Database, Error, Fetch, Fetcher, KeyProof, OpenAt, Operation, Prepared, Served, State,
    StateSync, SyncError, family,
    family::Slot,
    hash::to_plain,
    record::{CommitMetadata, Record},
    storage::{self, Location, Merkle, Strategy, Translator},
    types::{Change, Digest, Family, Root},
};
use crate::runtime::Runtime;
use bytes::Bytes;
use commonware_cryptography::Hasher;
use commonware_runtime::Handle;
use commonware_storage::qmdb::{
    any::value::VariableEncoding,
    immutable::{batch::MerkleizedBatch, variable as immutable},
};
use std::{num::NonZeroU64, sync::Arc};

/// Nothing is ever declared inactive.
const FLOOR: Location = Location::new(0);

type Db<E, H> = immutable::Db<Merkle, E, <H as Hasher>::Digest, Record, H, Translator, Strategy>;
type Op<H> = immutable::Operation<Merkle, <H as Hasher>::Digest, Record>;
type Batch<H> = MerkleizedBatch<
    Merkle,
    <H as Hasher>::Digest,
    <H as Hasher>::Digest,
    VariableEncoding<Record>,
    Strategy,
>;

/// An open database of family `immutable`.
struct Immutable<E: Runtime, H: Hasher>(Slot<Db<E, H>>);

fn config(generation: u64) -> immutable::Config<Translator, ((), ()), Strategy> {
    let (merkle_config, log) = storage::configs(Family::Immutable, generation, ((), ()));
    immutable::Config {
        merkle_config,
        log,
        translator: Translator::default(),
        init_buffer: storage::REPLAY_BUFFER,
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
    Ok(Box::new(Immutable(Slot::new(db))))
}

pub(super) async fn sync<E: Runtime, H: Hasher>(
    context: E,
    generation: u64,
    target: StateSync,
    fetcher: Arc<dyn Fetcher>,
) -> Result<Box<dyn Database>, SyncError> {
    let db: Db<E, H> =
        family::sync::<_, E, H>(context, config(generation), &target, fetcher).await?;
    Ok(Box::new(Immutable(Slot::new(db))))
}

pub(super) fn verify_boundary<H: Hasher>(
    operations_root: Root,
    size: u64,
    start: u64,
    body: Bytes,
) -> Result<Vec<Digest>, String> {
    family::verify_boundary::<H, Op<H>>(operations_root, size, start, body)
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
    use commonware_storage::qmdb::immutable::Operation as Immutable;
    match operation {
        Immutable::Set(hash, Record::Entry { key, value }) => {
            Operation::Put { hash: to_plain::<H>(&hash), key, value }
        }
        // No writer stores metadata under a key.
        Immutable::Set(_, Record::Commit(_)) | Immutable::Commit(..) => Operation::Commit,
    }
}

#[async_trait::async_trait]
impl<E: Runtime, H: Hasher> Database for Immutable<E, H> {
    fn state(&self) -> Result<State, Error> {
        let db = self.0.get()?;
        let root = to_plain::<H>(&db.root());
        Ok(State {
            size: *db.bounds().end,
            floor: *db.sync_boundary(),
            root,
            operations_root: root,
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
                Change::Put { key, value } => batch.set(
                    H::hash(&[key]),
                    Record::Entry {
                        key: Bytes::copy_from_slice(key),
                        value: Bytes::copy_from_slice(value),
                    },
                ),
                Change::Delete { .. } => {
                    return Err(Error::Unsupported("family 'immutable' has no delete"));
                }
                Change::Append { .. } => {
                    return Err(Error::Unsupported("family 'immutable' has no append"));
                }
            };
        }
        let batch = batch.merkleize(db, Some(Record::Commit(metadata)), FLOOR).await?;
        let root = to_plain::<H>(&batch.root());
        let state = State {
            size: *batch.bounds().tip.size,
            floor: *batch.bounds().inactivity_floor,
            root,
            operations_root: root,
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

    async fn prove_key(&self, _: &[u8]) -> Result<KeyProof, Error> {
        Err(Error::Unsupported("family 'immutable' has no bounded way from a key to its location"))
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
