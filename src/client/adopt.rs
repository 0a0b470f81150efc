//! A replica's storage is given to another database, by an operator's act.

use super::{core::Error, pin};
use crate::{
    checkpoint::LAYOUT_VERSION,
    checkpoints::CheckpointStore,
    database::{Generations, types::DatabaseId},
    rotations::RotationStore,
    runtime::Runtime,
};

/// Pins the storage of `context` to `database`, and removes the replica of the one before; evidence and keys
/// stay. Gives the identity that was pinned before. Safe to run again.
///
/// # Errors
///
/// A storage that is no replica's, or of another layout.
pub async fn adopt<E: Runtime>(context: &E, database: DatabaseId) -> Result<DatabaseId, Error> {
    let pinned = pin::read(context).await?.ok_or(Error::NotPinned)?;
    if pinned.layout != LAYOUT_VERSION {
        return Err(Error::Layout { found: pinned.layout, ours: LAYOUT_VERSION });
    }
    pin::require_all(context).await?;
    let mut generations = Generations::open(context.child("generations")).await?;
    if pinned.database == database {
        // What an interrupted run left.
        generations.sweep(context, pinned.family).await?;
        return Ok(database);
    }
    generations.forget(context, pinned.family).await?;
    CheckpointStore::open(context.child("newest")).await?.clear().await?;
    RotationStore::of_replica(context.child("publisher_keys")).await?.clear().await?;
    // Last: what is pinned to the old database holds nothing of it any more.
    pin::write(context, pin::Pin { database, ..pinned }).await?;
    Ok(pinned.database)
}
