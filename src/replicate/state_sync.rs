//! Building a replica in a new generation while the old one serves.

use super::{LinkSource, Progress};
use crate::{
    checkpoint::SignedCheckpoint,
    database::{
        self, Fetch, FetchError, Fetched, Fetcher, Generations, Kind, Place, StateSync, SyncError,
        types::Mode,
    },
    ledger::{self, Ledger},
    runtime::{Runtime, StorageGuard},
};
use std::{
    num::{NonZeroU64, NonZeroUsize},
    sync::Arc,
};

/// How to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Operations per request.
    pub batch: NonZeroU64,
    /// Requests in flight.
    pub outstanding: NonZeroUsize,
    /// How much of the database is kept.
    pub mode: Mode,
}

/// Why no new generation was adopted. The last good one is untouched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target's operations are no longer held: take a newer target.
    #[error("the operations of this target were pruned")]
    Pruned,
    /// The operations were proved, but do not add up to the signed state.
    #[error("the synced state is not the signed one: {0}")]
    NotTheSignedState(String),
    /// Called off.
    #[error("cancelled")]
    Cancelled,
    /// Our own storage.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
}

impl From<database::Error> for Error {
    fn from(error: database::Error) -> Self {
        Self::Ledger(error.into())
    }
}

/// Builds the state of `target` in the generation under construction and adopts it. What an
/// interrupted attempt left there is used again.
pub async fn run<E: Runtime>(
    context: &E,
    generations: &mut Generations<E>,
    target: &SignedCheckpoint,
    config: Config,
    source: LinkSource<E>,
    progress: &Arc<Progress>,
) -> Result<Ledger<E>, Error> {
    let checkpoint = &target.checkpoint;
    let kind = checkpoint.kind();
    let generation = generations.build().await?;
    progress.begin(checkpoint.size);
    let place = Place { generation, mode: config.mode };
    let wanted = StateSync {
        operations_root: checkpoint.operations_root,
        floor: checkpoint.floor,
        size: checkpoint.size,
        batch: config.batch,
        outstanding: config.outstanding,
    };
    let source = Arc::new(Guarded { source, guard: generations.guard() });
    let built = database::state_sync(context.child("database"), kind, place, wanted, source).await;
    let mismatch = match built {
        Ok(mut database) => {
            // What a compact database imported is in memory only until then.
            database.sync().await?;
            let state = database.state()?;
            if state == checkpoint.state() {
                let ledger = Ledger::create(context, place, database, target.clone()).await?;
                generations.adopt(generation).await?;
                ledger.guard_with(&generations.guard());
                return Ok(ledger);
            }
            format!("root {} instead of {}", state.root, checkpoint.root)
        }
        Err(SyncError::Source(FetchError::Pruned)) => return Err(Error::Pruned),
        Err(SyncError::Source(FetchError::Cancelled)) => return Err(Error::Cancelled),
        Err(SyncError::RootMismatch(text)) => text,
        Err(SyncError::Database(error)) => {
            // What an interrupted attempt left may not open (a torn import): begin anew.
            discard(context, generations, kind, generation).await?;
            return Err(error.into());
        }
    };
    discard(context, generations, kind, generation).await?;
    Err(Error::NotTheSignedState(mismatch))
}

/// Hands nothing on to a storage that is not where it was: the library would make its directories again.
struct Guarded<E: Runtime> {
    source: LinkSource<E>,
    guard: StorageGuard,
}

#[async_trait::async_trait]
impl<E: Runtime> Fetcher for Guarded<E> {
    async fn fetch(&self, fetch: Fetch) -> Result<Fetched, FetchError> {
        let fetched = self.source.fetch(fetch).await?;
        self.guard.check().map_err(|_| FetchError::Cancelled)?;
        Ok(fetched)
    }
}

/// Drops the generation under construction.
async fn discard<E: Runtime>(
    context: &E,
    generations: &mut Generations<E>,
    kind: Kind,
    generation: u64,
) -> Result<(), Error> {
    generations.abandon(generation).await?;
    Generations::remove(context, kind.family, generation).await?;
    Ok(())
}
