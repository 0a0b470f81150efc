//! A new identity for a database whose history forked, after a restore.

use super::{
    core::{Error, place},
    run::{failure, load_key},
    state::State,
};
use crate::{
    checkpoint::{Checkpoint, RotationStore, unix_ms},
    daemon::{self, Failure},
    database::{
        self, Kind, OpenAt,
        types::{DatabaseId, Mode},
    },
    keys,
    ledger::Ledger,
    runtime::Runtime,
};
use commonware_cryptography::ed25519::PrivateKey;
use std::path::Path;

/// Begins a new epoch in `storage_dir`: the data stay, the identity changes, and clients adopt it
/// by hand only. Safe to run again if it was interrupted.
pub fn new_epoch(storage_dir: &Path, publisher_key: Option<&Path>) -> Result<DatabaseId, Failure> {
    let id = daemon::with_storage(storage_dir, |context| async move {
        let publisher = load_key(publisher_key, storage_dir, "publisher.key")?;
        begin(&context, &publisher).await.map_err(failure)
    })?;
    keys::write_public_file(&daemon::public_dir(storage_dir), "database.id", &id.to_string())?;
    Ok(id)
}

async fn begin<E: Runtime>(context: &E, publisher: &PrivateKey) -> Result<DatabaseId, Error> {
    let state = State::open(context.child("state")).await?;
    let Some(mut record) = state.get() else {
        return Err(Error::Mismatch("no database was made in this directory".into()));
    };
    if !record.epoch_pending {
        catch_up(context, record.storage).await;
        record.parameters.epoch += 1;
        record.epoch_pending = true;
    }
    let state = state.put(record.clone()).await?;
    let id = record.identity().id;
    let kind = Kind { family: record.parameters.family, hash: record.parameters.hash };
    let database =
        database::open(context.child("database"), kind, place(record.storage), OpenAt::Latest)
            .await?;
    let (found, metadata) = (database.state()?, database.metadata().await?);
    let now_ms = unix_ms(context.current());
    // The new history begins with the present key: how it came to sign the old one is no matter.
    RotationStore::of_publisher(context.child("publisher_keys")).await?.clear().await?;
    let base = Checkpoint {
        database: id,
        family: kind.family,
        hash: kind.hash,
        sequence: metadata.map_or(0, |metadata| metadata.sequence),
        floor: found.floor,
        size: found.size,
        root: found.root,
        operations_root: found.operations_root,
        committed_at_ms: metadata.map_or(now_ms, |metadata| metadata.committed_at_ms),
        signed_at_ms: now_ms,
    }
    .sign(publisher);
    let ledger = Ledger::create(context, place(record.storage), database, base).await?;
    ledger.sync().await?;
    record.epoch_pending = false;
    state.put(record).await?;
    Ok(id)
}

/// Brings the database up to its log, where the two still fit; else it goes on as it is.
async fn catch_up<E: Runtime>(context: &E, storage: Mode) {
    match Ledger::open(context, place(storage), false, |_| {}).await {
        Ok(Some(ledger)) => ledger.close().await,
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "going on with the database as it is"),
    }
}
