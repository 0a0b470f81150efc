//! Which implementation a [`Kind`] means: the one place that lists them.

use super::{
    Database, Error, Fetcher, Kind, StateSync, SyncError, any, current, family, immutable, keyless,
    storage::Location,
    store::{Opened, Store},
    types::{Family, HashKind},
};
use crate::runtime::Runtime;
use commonware_cryptography::{Blake3, Hasher, Sha256};
use std::sync::Arc;

/// Where an opened database may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenAt {
    /// At whatever state it has.
    Latest,
    /// At the latest commit of at most this many operations; what follows is dropped durably.
    AtMost(u64),
}

impl OpenAt {
    /// The library's form.
    pub(super) fn max_size(self) -> Option<Location> {
        match self {
            Self::Latest => None,
            Self::AtMost(size) => Some(Location::new(size)),
        }
    }
}

/// Opens the database of `kind` in `generation`, making an empty one where there is none.
pub async fn open<E: Runtime>(
    context: E,
    kind: Kind,
    generation: u64,
    at: OpenAt,
) -> Result<Box<dyn Database>, Error> {
    match kind.hash {
        HashKind::Sha256 => open_as::<E, Sha256>(context, kind.family, generation, at).await,
        HashKind::Blake3 => open_as::<E, Blake3>(context, kind.family, generation, at).await,
    }
}

async fn open_as<E: Runtime, H: Hasher>(
    context: E,
    family: Family,
    generation: u64,
    at: OpenAt,
) -> Result<Box<dyn Database>, Error> {
    Ok(match family {
        Family::Any => boxed(any::Any::<E, H>::open(context, generation, at).await?),
        Family::Immutable => {
            boxed(immutable::Immutable::<E, H>::open(context, generation, at).await?)
        }
        Family::Keyless => boxed(keyless::Keyless::<E, H>::open(context, generation, at).await?),
        Family::Current => boxed(current::Current::<E, H>::open(context, generation, at).await?),
    })
}

/// Builds the database of `kind` in `generation` from what `fetcher` brings, verified against
/// `target`. What an interrupted state sync left in the generation is used again.
///
/// Only the operations root was compared on return: the caller compares the whole
/// [state](Database::state) with the signed one.
pub async fn state_sync<E: Runtime>(
    context: E,
    kind: Kind,
    generation: u64,
    target: StateSync,
    fetcher: Arc<dyn Fetcher>,
) -> Result<Box<dyn Database>, SyncError> {
    let family = kind.family;
    match kind.hash {
        HashKind::Sha256 => {
            sync_as::<E, Sha256>(context, family, generation, target, fetcher).await
        }
        HashKind::Blake3 => {
            sync_as::<E, Blake3>(context, family, generation, target, fetcher).await
        }
    }
}

async fn sync_as<E: Runtime, H: Hasher>(
    context: E,
    family: Family,
    generation: u64,
    target: StateSync,
    fetcher: Arc<dyn Fetcher>,
) -> Result<Box<dyn Database>, SyncError> {
    Ok(match family {
        Family::Any => {
            let config = any::config(generation);
            boxed(any::Any::<E, H>(family::sync(context, config, &target, fetcher).await?))
        }
        Family::Immutable => {
            let config = immutable::config(generation);
            let db = family::sync(context, config, &target, fetcher).await?;
            boxed(immutable::Immutable::<E, H>(db))
        }
        Family::Keyless => {
            let config = keyless::config(generation);
            boxed(keyless::Keyless::<E, H>(family::sync(context, config, &target, fetcher).await?))
        }
        Family::Current => {
            let config = current::config(generation);
            boxed(current::Current::<E, H>(family::sync(context, config, &target, fetcher).await?))
        }
    })
}

fn boxed(store: impl Store) -> Box<dyn Database> {
    Box::new(Opened::new(store))
}
