//! Mode `compact`: of `immutable` and `keyless`, only what the next commit builds on.
//!
//! A compact database knows its root and executes commits as a full one does, so it follows and
//! verifies all the same, in memory and disk that do not grow with the history. It holds no
//! values: reads, exports, proofs and checks for conflicts are refused by name. One frontier is
//! kept for each of the last commits, so that it can be opened at, and serve, any of them.

use super::{
    Database, Error, Fetch, Fetcher, Kind, OpenAt, Operation, Prepared, Served, State, StateSync,
    SyncError, family,
    family::Slot,
    hash::to_plain,
    record::{CommitMetadata, Record},
    storage::{self, Location, Merkle, Strategy},
    types::{Change, Family, HashKind},
};
use crate::{database::KeyProof, runtime::Runtime};
use bytes::Bytes;
use commonware_cryptography::{Blake3, Hasher, Sha256};
use commonware_runtime::Handle;
use commonware_storage::qmdb::{
    any::value::VariableEncoding,
    immutable::{self, variable as immutable_variable},
    keyless::{self, variable as keyless_variable},
};
use std::{num::NonZeroU64, sync::Arc};

/// What it cannot do.
const NO_VALUES: Error = Error::Unsupported("a compact database holds no values");
const NOT_COMPACT: Error = Error::Unsupported("mode 'compact' is of 'immutable' and 'keyless'");
/// Nothing is ever declared inactive, as in the full databases.
const FLOOR: Location = Location::new(0);

type Keyless<E, H> = keyless_variable::CompactDb<Merkle, E, Record, H, Strategy>;
type Immutable<E, H> =
    immutable_variable::CompactDb<Merkle, E, <H as Hasher>::Digest, Record, H, Strategy>;

pub(super) async fn open<E: Runtime>(
    context: E,
    kind: Kind,
    generation: u64,
    at: OpenAt,
) -> Result<Box<dyn Database>, Error> {
    let max = match at {
        OpenAt::Latest => None,
        OpenAt::AtMost(size) => Some(Location::new(size)),
    };
    match (kind.family, kind.hash) {
        (Family::Keyless, HashKind::Sha256) => {
            open_keyless::<E, Sha256>(context, generation, max).await
        }
        (Family::Keyless, HashKind::Blake3) => {
            open_keyless::<E, Blake3>(context, generation, max).await
        }
        (Family::Immutable, HashKind::Sha256) => {
            open_immutable::<E, Sha256>(context, generation, max).await
        }
        (Family::Immutable, HashKind::Blake3) => {
            open_immutable::<E, Blake3>(context, generation, max).await
        }
        (Family::Any | Family::Current, _) => Err(NOT_COMPACT),
    }
}

async fn open_keyless<E: Runtime, H: Hasher>(
    context: E,
    generation: u64,
    max: Option<Location>,
) -> Result<Box<dyn Database>, Error> {
    let config = storage::compact_config(Family::Keyless, generation, ());
    let db = Keyless::<E, H>::init(context, config, max).await?;
    Ok(Box::new(CompactKeyless(Slot::new(db))))
}

async fn open_immutable<E: Runtime, H: Hasher>(
    context: E,
    generation: u64,
    max: Option<Location>,
) -> Result<Box<dyn Database>, Error> {
    let config = storage::compact_config(Family::Immutable, generation, ((), ()));
    let db = Immutable::<E, H>::init(context, config, max).await?;
    Ok(Box::new(CompactImmutable(Slot::new(db))))
}

pub(super) async fn state_sync<E: Runtime>(
    context: E,
    kind: Kind,
    generation: u64,
    target: StateSync,
    fetcher: Arc<dyn Fetcher>,
) -> Result<Box<dyn Database>, SyncError> {
    match (kind.family, kind.hash) {
        (Family::Keyless, HashKind::Sha256) => {
            sync_keyless::<E, Sha256>(context, generation, target, fetcher).await
        }
        (Family::Keyless, HashKind::Blake3) => {
            sync_keyless::<E, Blake3>(context, generation, target, fetcher).await
        }
        (Family::Immutable, HashKind::Sha256) => {
            sync_immutable::<E, Sha256>(context, generation, target, fetcher).await
        }
        (Family::Immutable, HashKind::Blake3) => {
            sync_immutable::<E, Blake3>(context, generation, target, fetcher).await
        }
        (Family::Any | Family::Current, _) => Err(NOT_COMPACT.into()),
    }
}

async fn sync_keyless<E: Runtime, H: Hasher>(
    context: E,
    generation: u64,
    target: StateSync,
    fetcher: Arc<dyn Fetcher>,
) -> Result<Box<dyn Database>, SyncError> {
    let config = storage::compact_config(Family::Keyless, generation, ());
    let db: Keyless<E, H> = family::sync::<_, E, H>(context, config, &target, fetcher).await?;
    let mut database = CompactKeyless(Slot::new(db));
    // What was imported is in memory only until then.
    database.sync().await?;
    Ok(Box::new(database))
}

async fn sync_immutable<E: Runtime, H: Hasher>(
    context: E,
    generation: u64,
    target: StateSync,
    fetcher: Arc<dyn Fetcher>,
) -> Result<Box<dyn Database>, SyncError> {
    let config = storage::compact_config(Family::Immutable, generation, ((), ()));
    let db: Immutable<E, H> = family::sync::<_, E, H>(context, config, &target, fetcher).await?;
    let mut database = CompactImmutable(Slot::new(db));
    database.sync().await?;
    Ok(Box::new(database))
}

fn metadata_of(record: Option<Record>) -> Result<Option<CommitMetadata>, Error> {
    match record {
        Some(Record::Commit(metadata)) => Ok(Some(metadata)),
        Some(Record::Entry { .. }) => Err(Error::Corrupt("an entry as metadata".into())),
        None => Ok(None),
    }
}

/// One of the two databases behind the trait: they differ in the batch that is made of changes.
macro_rules! compact {
    ($name:ident, $db:ident, $batch:ty, |$changes:ident, $batch_of:ident| $fill:expr) => {
        struct $name<E: Runtime, H: Hasher>(Slot<$db<E, H>>);

        #[async_trait::async_trait]
        impl<E: Runtime, H: Hasher> Database for $name<E, H> {
            fn state(&self) -> Result<State, Error> {
                let db = self.0.get()?;
                let (root, floor) = (to_plain::<H>(&db.root()), *db.inactivity_floor_loc());
                Ok(State { size: *db.size(), floor, root, operations_root: root })
            }

            fn retained_from(&self) -> Result<u64, Error> {
                Ok(*self.0.get()?.size())
            }

            async fn get(&self, _: &[u8]) -> Result<Option<Bytes>, Error> {
                Err(NO_VALUES)
            }

            async fn metadata(&self) -> Result<Option<CommitMetadata>, Error> {
                metadata_of(self.0.get()?.get_metadata())
            }

            async fn prepare(
                &self,
                parent: Option<&Prepared>,
                $changes: &[Change],
                metadata: CommitMetadata,
            ) -> Result<Prepared, Error> {
                let db = self.0.get()?;
                let parent = parent.map(family::batch::<$batch>).transpose()?;
                let $batch_of = match &parent {
                    Some(parent) => parent.new_batch::<H>(),
                    None => db.new_batch(),
                };
                let batch = $fill;
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
                let batch = family::batch::<$batch>(&prepared)?;
                self.0.get()?.validate_batch(&batch)?;
                self.0
                    .mutate(|db| async { Ok::<_, Error>((db.apply_batch(batch).await?, ())) })
                    .await
            }

            async fn start_sync(&mut self) -> Result<Handle<()>, Error> {
                self.0.mutate(|db| db.start_sync()).await
            }

            async fn sync(&mut self) -> Result<(), Error> {
                self.0.mutate(|db| async { Ok::<_, Error>((db.sync().await?, ())) }).await
            }

            async fn prune(&mut self, location: u64) -> Result<(), Error> {
                let location = Location::new(location);
                self.0
                    .mutate(|db| async move { Ok::<_, Error>((db.prune(location).await?, ())) })
                    .await
            }

            async fn serve(&self, fetch: Fetch, bytes_max: usize) -> Result<Served, Error> {
                match fetch {
                    Fetch::Boundary { .. } => self.0.serve(fetch, bytes_max).await,
                    Fetch::Operations { .. } => Err(NO_VALUES),
                }
            }

            async fn prove_key(&self, _: &[u8]) -> Result<KeyProof, Error> {
                Err(NO_VALUES)
            }

            async fn operations(
                &self,
                _: u64,
                _: u64,
                _: NonZeroU64,
            ) -> Result<Vec<Operation>, Error> {
                Err(NO_VALUES)
            }
        }
    };
}

compact!(CompactKeyless, Keyless, KeylessBatch<H>, |changes, batch| {
    let mut batch = batch;
    for change in changes {
        let Change::Append { value } = change else {
            return Err(Error::Unsupported("family 'keyless' has no keys"));
        };
        let value = Bytes::copy_from_slice(value);
        batch = batch.append(Record::Entry { key: Bytes::new(), value });
    }
    batch
});

compact!(CompactImmutable, Immutable, ImmutableBatch<H>, |changes, batch| {
    let mut batch = batch;
    for change in changes {
        let Change::Put { key, value } = change else {
            return Err(Error::Unsupported("family 'immutable' takes puts only"));
        };
        let record = Record::Entry {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(value),
        };
        batch = batch.set(H::hash(&[key]), record);
    }
    batch
});

type KeylessBatch<H> = keyless::CompactMerkleizedBatch<
    Merkle,
    <H as Hasher>::Digest,
    VariableEncoding<Record>,
    Strategy,
>;
type ImmutableBatch<H> = immutable::CompactMerkleizedBatch<
    Merkle,
    <H as Hasher>::Digest,
    <H as Hasher>::Digest,
    VariableEncoding<Record>,
    Strategy,
>;
