//! Which implementation a [`Kind`] means: the one place that lists them.

use super::{
    Database, Error, Fetcher, Kind, Place, StateSync, SyncError, any, compact, current, immutable,
    keyless,
    storage::Location,
    store::{Opened, Store},
    types::{Family, HashKind, Mode},
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

/// Why a compact database cannot be had.
const NOT_COMPACT: Error =
    Error::Unsupported("only families 'immutable' and 'keyless' have a mode 'compact'");

/// Opens the database of `kind` in `place`, making an empty one where there is none.
///
/// A generation has one mode: what another one left there is not seen.
pub async fn open<E: Runtime>(
    context: E,
    kind: Kind,
    place: Place,
    at: OpenAt,
) -> Result<Box<dyn Database>, Error> {
    match kind.hash {
        HashKind::Sha256 => open_as::<E, Sha256>(context, kind.family, place, at).await,
        HashKind::Blake3 => open_as::<E, Blake3>(context, kind.family, place, at).await,
    }
}

async fn open_as<E: Runtime, H: Hasher>(
    context: E,
    family: Family,
    place: Place,
    at: OpenAt,
) -> Result<Box<dyn Database>, Error> {
    let Place { generation, mode } = place;
    Ok(match (mode, family) {
        (Mode::Full, Family::Any) => boxed(any::Any::<E, H>::open(context, generation, at).await?),
        (Mode::Full, Family::Current) => {
            boxed(current::Current::<E, H>::open(context, generation, at).await?)
        }
        (Mode::Full, Family::Immutable) => {
            boxed(immutable::Immutable::<E, H>::open(context, generation, at).await?)
        }
        (Mode::Full, Family::Keyless) => {
            boxed(keyless::Keyless::<E, H>::open(context, generation, at).await?)
        }
        (Mode::Compact, Family::Immutable) => {
            boxed(compact::Immutable::<E, H>::open(context, generation, at).await?)
        }
        (Mode::Compact, Family::Keyless) => {
            boxed(compact::Keyless::<E, H>::open(context, generation, at).await?)
        }
        (Mode::Compact, Family::Any | Family::Current) => return Err(NOT_COMPACT),
    })
}

/// Builds the database of `kind` in `place` from what `fetcher` brings, verified against
/// `target`. What an interrupted state sync left in the generation is used again.
///
/// A compact database is built from the target's last commit alone, and nothing of an interrupted
/// attempt is used again; one torn while it was stored fails to build until it is removed.
///
/// Only the operations root was compared on return: the caller compares the whole
/// [state](Database::state) with the signed one.
pub async fn state_sync<E: Runtime>(
    context: E,
    kind: Kind,
    place: Place,
    target: StateSync,
    fetcher: Arc<dyn Fetcher>,
) -> Result<Box<dyn Database>, SyncError> {
    let family = kind.family;
    match kind.hash {
        HashKind::Sha256 => sync_as::<E, Sha256>(context, family, place, target, fetcher).await,
        HashKind::Blake3 => sync_as::<E, Blake3>(context, family, place, target, fetcher).await,
    }
}

async fn sync_as<E: Runtime, H: Hasher>(
    context: E,
    family: Family,
    place: Place,
    target: StateSync,
    fetcher: Arc<dyn Fetcher>,
) -> Result<Box<dyn Database>, SyncError> {
    let Place { generation, mode } = place;
    Ok(match (mode, family) {
        (Mode::Full, Family::Any) => {
            boxed(any::Any::<E, H>::sync(context, generation, &target, fetcher).await?)
        }
        (Mode::Full, Family::Current) => {
            boxed(current::Current::<E, H>::sync(context, generation, &target, fetcher).await?)
        }
        (Mode::Full, Family::Immutable) => {
            boxed(immutable::Immutable::<E, H>::sync(context, generation, &target, fetcher).await?)
        }
        (Mode::Full, Family::Keyless) => {
            boxed(keyless::Keyless::<E, H>::sync(context, generation, &target, fetcher).await?)
        }
        (Mode::Compact, Family::Immutable) => {
            boxed(compact::Immutable::<E, H>::sync(context, generation, &target, fetcher).await?)
        }
        (Mode::Compact, Family::Keyless) => {
            boxed(compact::Keyless::<E, H>::sync(context, generation, &target, fetcher).await?)
        }
        (Mode::Compact, Family::Any | Family::Current) => return Err(NOT_COMPACT.into()),
    })
}

fn boxed(store: impl Store) -> Box<dyn Database> {
    Box::new(Opened::new(store))
}
