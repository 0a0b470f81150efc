//! Family `keyless`: a log of values that only grows. An entry's name is its location.
//!
//! The floor stays at 0: an entry never becomes inactive, and a new replica holds all of them.

use super::{
    Database, Error, Fetch, Fetcher, KeyProof, OpenAt, Operation, Prepared, Served, State,
    StateSync, SyncError, family,
    family::Slot,
    hash::to_plain,
    record::{CommitMetadata, Record},
    storage::{self, Location, Merkle, Strategy},
    types::{Change, Digest, Family, Root},
};
use crate::runtime::Runtime;
use bytes::Bytes;
use commonware_cryptography::Hasher;
use commonware_runtime::Handle;
use commonware_storage::qmdb::{
    any::value::VariableEncoding,
    keyless::{batch::MerkleizedBatch, variable as keyless},
};
use std::{num::NonZeroU64, sync::Arc};

/// Nothing is ever declared inactive.
const FLOOR: Location = Location::new(0);

type Db<E, H> = keyless::Db<Merkle, E, Record, H, Strategy>;
type Op = keyless::Operation<Merkle, Record>;
type Batch<H> = MerkleizedBatch<Merkle, <H as Hasher>::Digest, VariableEncoding<Record>, Strategy>;

/// An open database of family `keyless`.
struct Keyless<E: Runtime, H: Hasher>(Slot<Db<E, H>>);

fn config(generation: u64) -> keyless::Config<(), Strategy> {
    let (merkle, log) = storage::configs(Family::Keyless, generation, ());
    keyless::Config { merkle, log }
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
    Ok(Box::new(Keyless(Slot::new(db))))
}

pub(super) async fn sync<E: Runtime, H: Hasher>(
    context: E,
    generation: u64,
    target: StateSync,
    fetcher: Arc<dyn Fetcher>,
) -> Result<Box<dyn Database>, SyncError> {
    let db: Db<E, H> =
        family::sync::<_, E, H>(context, config(generation), &target, fetcher).await?;
    Ok(Box::new(Keyless(Slot::new(db))))
}

pub(super) fn verify_boundary<H: Hasher>(
    operations_root: Root,
    size: u64,
    start: u64,
    body: Bytes,
) -> Result<Vec<Digest>, String> {
    family::verify_boundary::<H, Op>(operations_root, size, start, body)
}

pub(super) fn verify_operation<H: Hasher>(
    operations_root: Root,
    size: u64,
    location: u64,
    body: Bytes,
) -> Result<Operation, String> {
    let found = family::verify_operation::<H, Op>(operations_root, size, location, body)?;
    Ok(plain_operation(found))
}

fn plain_operation(operation: Op) -> Operation {
    use commonware_storage::qmdb::keyless::Operation as Keyless;
    match operation {
        Keyless::Append(Record::Entry { value, .. }) => Operation::Append { value },
        // No writer appends metadata as a value.
        Keyless::Append(Record::Commit(_)) | Keyless::Commit(..) => Operation::Commit,
    }
}

#[async_trait::async_trait]
impl<E: Runtime, H: Hasher> Database for Keyless<E, H> {
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

    async fn get(&self, _: &[u8]) -> Result<Option<Bytes>, Error> {
        Err(Error::Unsupported("family 'keyless' has no keys"))
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
                Change::Append { value } => batch.append(Record::Entry {
                    key: Bytes::new(),
                    value: Bytes::copy_from_slice(value),
                }),
                Change::Put { .. } | Change::Delete { .. } => {
                    return Err(Error::Unsupported("family 'keyless' has no keys"));
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
        Err(Error::Unsupported("family 'keyless' has no keys"))
    }

    async fn operations(
        &self,
        size: u64,
        start: u64,
        max: NonZeroU64,
    ) -> Result<Vec<Operation>, Error> {
        family::operations(self.0.get()?, size, start, max, plain_operation).await
    }
}
