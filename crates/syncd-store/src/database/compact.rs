//! Mode `compact`: only the authenticated frontier of `immutable` and `keyless`.
//!
//! A compact database executes commits and has the roots of a full one, bit for bit, but keeps no
//! operation except the last commit of each state that it has not pruned. So it answers no reads,
//! sees no conflicts (whoever accepts writes of `immutable` needs a full database), and serves
//! nothing but those commits with their boundaries: enough for a replica that is compact too,
//! never for a full one. What it cannot do is refused as [`Error::Unsupported`], what it does not
//! hold as [`Error::Pruned`].
//!
//! Each applied commit adds about a kilobyte, which [pruning](super::Database::prune) removes.

use super::{
    Error, Fetcher, OpenAt, Operation, State, StateSync, SyncError, family, immutable, keyless,
    record::Record,
    storage::{self, Location, Merkle, STRATEGY, Strategy},
    store::{Store, forward_to_library},
    types::{Change, Family},
};
use crate::runtime::Runtime;
use commonware_cryptography::Hasher;
use commonware_runtime::Handle;
use commonware_storage::qmdb::{self, any::value::VariableEncoding, keyless::CompactConfig};
use std::sync::Arc;

type ImmutableDb<E, H> =
    qmdb::immutable::variable::CompactDb<Merkle, E, <H as Hasher>::Digest, Record, H, Strategy>;
type ImmutableBatch<H> = qmdb::immutable::CompactMerkleizedBatch<
    Merkle,
    <H as Hasher>::Digest,
    <H as Hasher>::Digest,
    VariableEncoding<Record>,
    Strategy,
>;
type KeylessDb<E, H> = qmdb::keyless::variable::CompactDb<Merkle, E, Record, H, Strategy>;
type KeylessBatch<H> = qmdb::keyless::CompactMerkleizedBatch<
    Merkle,
    <H as Hasher>::Digest,
    VariableEncoding<Record>,
    Strategy,
>;

/// A compact database of family `immutable`.
pub(super) struct Immutable<E: Runtime, H: Hasher>(ImmutableDb<E, H>);

/// A compact database of family `keyless`.
pub(super) struct Keyless<E: Runtime, H: Hasher>(KeylessDb<E, H>);

/// Where and how a compact database of `generation` is kept.
fn config<C: Default>(family: Family, generation: u64) -> CompactConfig<C, Strategy> {
    CompactConfig {
        strategy: STRATEGY,
        witness: storage::witnesses(family, generation),
        commit_codec_config: C::default(),
    }
}

/// The target of a compact state sync: the last commit and what stands for all before it.
fn frontier(target: &StateSync) -> StateSync {
    // A target of size 0 stays the empty range that is refused.
    StateSync { floor: target.size.saturating_sub(1), ..target.clone() }
}

/// Implements [`Store`] for a compact database; the library gives each family types of its own,
/// whose methods have the same names.
macro_rules! compact_store {
    (
        $store:ident, $db:ident, $batch:ident, $family:expr, $operation:ty, $plain:expr,
        $floor:expr, |$pending:ident, $change:ident| $add:expr
    ) => {
        impl<E: Runtime, H: Hasher> $store<E, H> {
            pub(super) async fn open(
                context: E,
                generation: u64,
                at: OpenAt,
            ) -> Result<Self, Error> {
                let config = config($family, generation);
                Ok(Self($db::init(context, config, at.max_size()).await?))
            }

            pub(super) async fn sync(
                context: E,
                generation: u64,
                target: &StateSync,
                fetcher: Arc<dyn Fetcher>,
            ) -> Result<Self, SyncError> {
                let config = config($family, generation);
                Ok(Self(family::sync(context, config, &frontier(target), fetcher).await?))
            }
        }

        impl<E: Runtime, H: Hasher> Store for $store<E, H> {
            type Hasher = H;
            type Source = $db<E, H>;
            type Batch = $batch<H>;

            forward_to_library!();

            fn state(&self) -> State {
                family::state::<H>(self.0.size(), self.0.inactivity_floor_loc(), &self.0.root())
            }

            fn retained_from(&self) -> Option<u64> {
                None
            }

            /// What is dropped are states, and the newest always stays.
            fn prunable_to(&self) -> u64 {
                *self.0.size()
            }

            async fn last_commit(&self) -> Result<Option<Record>, Error> {
                Ok(self.0.get_metadata())
            }

            async fn record(&self, _: &H::Digest) -> Result<Option<Record>, Error> {
                Err(Error::Unsupported("a compact database keeps no values"))
            }

            async fn batch(
                &self,
                parent: Option<Arc<$batch<H>>>,
                changes: &[Change],
                metadata: Record,
            ) -> Result<(State, Arc<$batch<H>>), Error> {
                let mut $pending = match &parent {
                    Some(parent) => parent.new_batch::<H>(),
                    None => self.0.new_batch(),
                };
                for $change in changes {
                    $pending = $add;
                }
                let batch = $pending.merkleize(&self.0, Some(metadata), $floor).await?;
                Ok((family::tip::<H>(batch.bounds()), batch))
            }

            fn plain(operation: $operation) -> Result<Operation, Error> {
                $plain(operation)
            }
        }
    };
}

compact_store!(
    Immutable,
    ImmutableDb,
    ImmutableBatch,
    Family::Immutable,
    immutable::Op<H>,
    immutable::plain::<H>,
    immutable::FLOOR,
    |pending, change| {
        let (key, record) = immutable::addition::<H>(change)?;
        pending.set(key, record)
    }
);
compact_store!(
    Keyless,
    KeylessDb,
    KeylessBatch,
    Family::Keyless,
    keyless::Op,
    keyless::plain,
    keyless::FLOOR,
    |pending, change| pending.append(keyless::addition(change)?)
);
