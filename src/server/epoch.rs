//! A new identity for a database whose history forked, after a restore (DESIGN §3.1).

use super::{
    core::{Error, GENERATION},
    run::load_key,
    state::State,
};
use crate::{
    checkpoint::{Checkpoint, unix_ms},
    daemon::{self, Failure},
    database::{
        self, Kind, OpenAt,
        types::{DatabaseId, Mode},
    },
    exit, keys,
    ledger::Ledger,
    lifecycle::DirectoryLock,
    runtime::Runtime,
};
use commonware_cryptography::ed25519::PrivateKey;
use std::{path::Path, sync::Mutex};

/// Begins a new epoch in `storage_dir`: the data stay, the identity changes, and clients adopt it
/// by hand only. Safe to run again if it was interrupted.
pub fn new_epoch(storage_dir: &Path, publisher_key: Option<&Path>) -> Result<DatabaseId, Failure> {
    if !daemon::data_dir(storage_dir).is_dir() {
        let text = format!("{} holds no server's storage", storage_dir.display());
        return Err(Failure::new(exit::DATA, text));
    }
    let _lock = DirectoryLock::take(storage_dir)?;
    let publisher = load_key(publisher_key, storage_dir, "publisher.key")?;
    let made = Mutex::new(None);
    let (publisher, result) = (&publisher, &made);
    daemon::run_on_runtime(storage_dir, |context| async move {
        let id = begin(&context, publisher).await.map_err(|error| {
            let code = if error.is_damage() { exit::DATA } else { exit::IO };
            Failure::new(code, error.to_string())
        })?;
        *result.lock().expect("nobody else holds it") = Some(id);
        Ok(())
    })?;
    let id = made.into_inner().expect("nobody else holds it");
    let id = id.ok_or_else(|| Failure::new(exit::INTERNAL, "no identity was made"))?;
    keys::write_public_file(&daemon::public_dir(storage_dir), "database.id", &id.to_string())?;
    Ok(id)
}

async fn begin<E: Runtime>(context: &E, publisher: &PrivateKey) -> Result<DatabaseId, Error> {
    let state = State::open(context.child("state")).await?;
    let Some(mut record) = state.get() else {
        return Err(Error::Mismatch("no database was made in this directory".into()));
    };
    if !record.epoch_pending {
        catch_up(context).await;
        record.parameters.epoch += 1;
        record.epoch_pending = true;
    }
    let state = state.put(record.clone()).await?;
    let id = record.identity().id;
    let kind = Kind { family: record.parameters.family, hash: record.parameters.hash };
    let database =
        database::open(context.child("database"), kind, Mode::Full, GENERATION, OpenAt::Latest)
            .await?;
    let (found, metadata) = (database.state()?, database.metadata().await?);
    let now_ms = unix_ms(context.current());
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
    let ledger = Ledger::create(context, GENERATION, database, base).await?;
    ledger.sync().await?;
    record.epoch_pending = false;
    state.put(record).await?;
    Ok(id)
}

/// Brings the database up to its log, where the two still fit; else it goes on as it is.
async fn catch_up<E: Runtime>(context: &E) {
    match Ledger::open(context, GENERATION, false, |_| {}).await {
        Ok(Some(ledger)) => ledger.close().await,
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "going on with the database as it is"),
    }
}
