//! What a family's file says of its database, and the one implementation of [`Database`] on top.
//!
//! A family implements [`Store`]: how its batches are made and what its operations mean. All
//! that the library gives every family under the same names is in
//! [`forward_to_library`]; all that is the same whatever the family is in [`Opened`].

use super::{
    Database, Entries, Error, Fetch, KeyProof, Operation, Prepared, Served, State,
    family::{self, Sizes, Slot},
    record::{CommitMetadata, Record},
    storage::{Location, Merkle},
    types::Change,
};
use bytes::Bytes;
use commonware_codec::Encode;
use commonware_cryptography::Hasher;
use commonware_runtime::Handle;
use commonware_storage::qmdb::{self, sync::source::Source};
use std::{
    future::Future,
    num::{NonZeroU64, NonZeroUsize},
    sync::Arc,
};

/// A family's database: a library handle that mutations take and give back.
pub(super) trait Store: Sized + Send + Sync + 'static {
    /// Hash of the database.
    type Hasher: Hasher;
    /// What serves its operations: the library's handle.
    type Source: Source<
            Family = Merkle,
            Digest = <Self::Hasher as Hasher>::Digest,
            Op: Encode,
            Error = qmdb::Error<Merkle>,
        >;
    /// An executed batch.
    type Batch: Send + Sync + 'static;

    /// The library's handle.
    fn source(&self) -> &Self::Source;

    /// The state that reads see.
    fn state(&self) -> State;

    /// First operation still held; `None` where the library does not tell.
    fn retained_from(&self) -> Option<u64>;

    /// The greatest location that operations may be pruned to.
    fn prunable_to(&self) -> u64 {
        self.state().floor
    }

    /// What the last commit carries.
    fn last_commit(&self) -> impl Future<Output = Result<Option<Record>, Error>> + Send;

    /// Executes `changes` on top of `parent` (or of the database).
    fn batch(
        &self,
        parent: Option<Arc<Self::Batch>>,
        changes: &[Change],
        metadata: Record,
    ) -> impl Future<Output = Result<(State, Arc<Self::Batch>), Error>> + Send;

    /// Whether `batch` can be applied; applying one that cannot costs the handle.
    fn validate(&self, batch: &Self::Batch) -> Result<(), Error>;

    /// Applies `batch` and its unapplied ancestors.
    fn apply(self, batch: Arc<Self::Batch>) -> impl Future<Output = Result<Self, Error>> + Send;

    /// Starts to make the applied state durable.
    fn start_sync(self) -> impl Future<Output = Result<(Self, Handle<()>), Error>> + Send;

    /// Makes the applied state durable.
    fn sync(self) -> impl Future<Output = Result<Self, Error>> + Send;

    /// Drops what stands below `location`.
    fn prune(self, location: Location) -> impl Future<Output = Result<Self, Error>> + Send;

    /// What an operation of the library says.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for an operation that no writer of this product makes.
    fn plain(operation: <Self::Source as Source>::Op) -> Result<Operation, Error>;

    /// The record under the hash of a user's key.
    fn record(
        &self,
        key: &<Self::Hasher as Hasher>::Digest,
    ) -> impl Future<Output = Result<Option<Record>, Error>> + Send;

    /// See [`Database::prove_key`].
    fn prove_key(&self, _key: &[u8]) -> impl Future<Output = Result<KeyProof, Error>> + Send {
        async { Err(Error::Unsupported("only family 'current' proves keys")) }
    }

    /// See [`Database::entries`].
    fn entries(
        &self,
        _from: u64,
        _count_max: NonZeroUsize,
        _bytes_max: usize,
    ) -> impl Future<Output = Result<Entries, Error>> + Send {
        async { Err(Error::Unsupported("only family 'keyless' in mode 'full' has entries")) }
    }
}

/// The methods of [`Store`] that the library has under the same names in every family, for a
/// type that wraps the library's handle.
macro_rules! forward_to_library {
    () => {
        fn source(&self) -> &Self::Source {
            &self.0
        }

        fn validate(&self, batch: &Self::Batch) -> Result<(), Error> {
            Ok(self.0.validate_batch(batch)?)
        }

        async fn apply(self, batch: Arc<Self::Batch>) -> Result<Self, Error> {
            Ok(Self(self.0.apply_batch(batch).await?))
        }

        async fn start_sync(self) -> Result<(Self, Handle<()>), Error> {
            let (database, handle) = self.0.start_sync().await?;
            Ok((Self(database), handle))
        }

        async fn sync(self) -> Result<Self, Error> {
            Ok(Self(self.0.sync().await?))
        }

        async fn prune(self, location: Location) -> Result<Self, Error> {
            Ok(Self(self.0.prune(location).await?))
        }
    };
}
pub(super) use forward_to_library;

/// The same, for what only databases have that hold their operations.
macro_rules! forward_to_full_library {
    () => {
        fn retained_from(&self) -> Option<u64> {
            Some(*self.0.bounds().start)
        }

        async fn last_commit(&self) -> Result<Option<Record>, Error> {
            Ok(self.0.get_metadata().await?)
        }
    };
}
pub(super) use forward_to_full_library;

/// Opens a family's database, or fetches it: `config`, `Db` are the family's own.
macro_rules! open_and_sync {
    ($name:ident) => {
        impl<E: Runtime, H: Hasher> $name<E, H> {
            pub(super) async fn open(
                context: E,
                generation: u64,
                at: OpenAt,
            ) -> Result<Self, Error> {
                Ok(Self(Db::init(context, config(generation), at.max_size()).await?))
            }

            pub(super) async fn sync(
                context: E,
                generation: u64,
                target: &StateSync,
                fetcher: Arc<dyn Fetcher>,
            ) -> Result<Self, SyncError> {
                Ok(Self(family::sync(context, config(generation), target, fetcher).await?))
            }
        }
    };
}
pub(super) use open_and_sync;

/// An open database of any family.
pub(super) struct Opened<S> {
    slot: Slot<S>,
    sizes: Sizes,
    /// What this process last pruned to, for stores that do not tell what they hold.
    pruned_to: u64,
}

impl<S: Store> Opened<S> {
    pub(super) fn new(store: S) -> Self {
        Self { slot: Slot::new(store), sizes: Sizes::default(), pruned_to: 0 }
    }
}

#[async_trait::async_trait]
impl<S: Store> Database for Opened<S> {
    fn state(&self) -> Result<State, Error> {
        Ok(self.slot.get()?.state())
    }

    fn retained_from(&self) -> Result<u64, Error> {
        Ok(self.slot.get()?.retained_from().unwrap_or(self.pruned_to))
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        family::value(self.slot.get()?.record(&S::Hasher::hash(&[key])).await?)
    }

    async fn metadata(&self) -> Result<Option<CommitMetadata>, Error> {
        family::metadata(self.slot.get()?.last_commit().await?)
    }

    async fn prepare(
        &self,
        parent: Option<&Prepared>,
        changes: &[Change],
        metadata: CommitMetadata,
    ) -> Result<Prepared, Error> {
        let parent = parent.map(family::batch::<S::Batch>).transpose()?;
        let metadata = Record::Commit(metadata);
        let (state, batch) = self.slot.get()?.batch(parent, changes, metadata).await?;
        Ok(Prepared { state, batch })
    }

    async fn apply(&mut self, prepared: Prepared) -> Result<(), Error> {
        let batch = family::batch::<S::Batch>(&prepared)?;
        self.slot.get()?.validate(&batch)?;
        self.slot.mutate(|store| async { Ok::<_, Error>((store.apply(batch).await?, ())) }).await
    }

    async fn start_sync(&mut self) -> Result<Handle<()>, Error> {
        self.slot.mutate(S::start_sync).await
    }

    async fn sync(&mut self) -> Result<(), Error> {
        self.slot.mutate(|store| async { Ok::<_, Error>((store.sync().await?, ())) }).await
    }

    async fn prune(&mut self, location: u64) -> Result<(), Error> {
        let max = self.slot.get()?.prunable_to();
        if location > max {
            // Asking the library would cost the handle.
            return Err(Error::OutOfRange(format!("cannot prune to {location}, above {max}")));
        }
        self.slot
            .mutate(|store| async move {
                Ok::<_, Error>((store.prune(Location::new(location)).await?, ()))
            })
            .await?;
        self.pruned_to = self.pruned_to.max(location);
        Ok(())
    }

    async fn serve(&self, fetch: Fetch, bytes_max: usize) -> Result<Served, Error> {
        family::serve(self.slot.get()?.source(), &self.sizes, fetch, bytes_max).await
    }

    async fn operations(
        &self,
        size: u64,
        start: u64,
        max: NonZeroU64,
    ) -> Result<Vec<Operation>, Error> {
        family::operations(self.slot.get()?.source(), size, start, max, S::plain).await
    }

    async fn entries(
        &self,
        from: u64,
        count_max: NonZeroUsize,
        bytes_max: usize,
    ) -> Result<Entries, Error> {
        self.slot.get()?.entries(from, count_max, bytes_max).await
    }

    async fn prove_key(&self, key: &[u8]) -> Result<KeyProof, Error> {
        self.slot.get()?.prove_key(key).await
    }

    async fn prove_operation(&self, location: u64, size: u64) -> Result<Bytes, Error> {
        if location >= size {
            return Err(Error::OutOfRange(format!("operation {location} of {size}")));
        }
        // One operation is never cut: the budget plays no part.
        let fetch = Fetch::Operations { size, start: location, max: NonZeroU64::MIN };
        Ok(self.serve(fetch, usize::MAX).await?.body)
    }
}
