//! A new identity for a database whose history forked, after a restore.

use super::{
    core::{Error, GENERATION, place},
    idempotency::{CarriedKeys, Idempotency},
    opening::{check_layout, require_all},
    run::{failure, load_existing_key},
    state::{Record, Stage, State},
};
use crate::{
    checkpoint::{Checkpoint, unix_ms},
    commit_log::CommitLog,
    daemon::{self, Failure},
    database::{self, Database, OpenAt, record::CommitMetadata, types::DatabaseId},
    directory::Role,
    keys,
    ledger::{self, Ledger},
    rotations::RotationStore,
    runtime::Runtime,
};
use commonware_cryptography::ed25519::PrivateKey;
use std::path::Path;

/// What a new epoch led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// The new identity.
    pub database: DatabaseId,
    /// What was given up, where the storage could not be read as a whole.
    pub discarded: Option<Discarded>,
}

/// What `--discard-unreadable` gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discarded {
    /// Sequence of the newest commit that the database has.
    pub kept: u64,
    /// Sequence of the newest commit that was found in the log.
    pub found: Option<u64>,
    /// Whether the log was read to its end, so that nothing came after `found`.
    pub is_exact: bool,
    /// Idempotency keys that were found and are not carried over.
    pub idempotency_keys: usize,
}

/// Begins a new epoch in `storage_dir`: the data stay, the identity changes, and clients adopt it
/// by hand only. Safe to run again if it was interrupted.
///
/// # Errors
///
/// A log that cannot be read to its end, or a database that cannot be brought up to it, changes nothing, unless
/// `discard` says to go on with the database as it is; `say` is told what that gives up, before it does.
pub fn new_epoch(
    storage_dir: &Path,
    publisher_key: Option<&Path>,
    discard: bool,
    say: impl Fn(&Discarded),
) -> Result<Epoch, Failure> {
    let epoch = daemon::with_storage(storage_dir, Role::Server, |context| async move {
        let publisher = load_existing_key(publisher_key, storage_dir, "publisher.key")?;
        begin(&context, &publisher, discard, say).await.map_err(failure)
    })?;
    let public = daemon::public_dir(storage_dir);
    keys::write_public_file(&public, "database.id", &epoch.database.to_string())?;
    Ok(epoch)
}

/// Begins a new epoch in the storage of `context`, as [`new_epoch`] does.
///
/// # Errors
///
/// As there.
pub async fn begin<E: Runtime>(
    context: &E,
    publisher: &PrivateKey,
    discard: bool,
    say: impl Fn(&Discarded),
) -> Result<Epoch, Error> {
    let mut state = State::open(context.child("state")).await?;
    let Some(mut record) = state.get() else {
        return Err(Error::Mismatch("no database was made in this directory".into()));
    };
    check_layout(&record.parameters)?;
    let mut discarded = None;
    match record.stage {
        Stage::Creating => {
            let text = "the first start of the server was interrupted: start it again";
            return Err(Error::Mismatch(text.into()));
        }
        Stage::EpochPending => {}
        Stage::Complete => {
            let mut known = Idempotency::default();
            discarded = catch_up(context, &record, &mut known, discard).await?;
            if let Some(discarded) = &discarded {
                // Before it is: who runs this again after it was interrupted is not asked again.
                say(discarded);
            }
            record.parameters.epoch += 1;
            let id = record.identity().id;
            let sequence = open_database(context, &record).await?.metadata().await?;
            let sequence = sequence.map_or(0, |metadata| metadata.sequence);
            // Before the log that holds them goes. Names the new identity, so that the old one ignores it.
            CarriedKeys::open(context.child("carried")).await?.keep(&known, id, sequence).await?;
            record.stage = Stage::EpochPending;
            state.put(record.clone()).await?;
        }
    }
    let database = record.identity().id;
    start_log(context, publisher, &record).await?;
    record.stage = Stage::Complete;
    state.put(record).await?;
    Ok(Epoch { database, discarded })
}

async fn open_database<E: Runtime>(
    context: &E,
    record: &Record,
) -> Result<Box<dyn Database>, Error> {
    let kind = record.parameters.kind();
    let context = context.child("database");
    let opened = database::open(context, kind, place(record.storage), OpenAt::Latest).await;
    Ok(opened.map_err(database::Error::of_opening)?)
}

/// Begins the log of the new identity with the state that the database has.
async fn start_log<E: Runtime>(
    context: &E,
    publisher: &PrivateKey,
    record: &Record,
) -> Result<(), Error> {
    let database = open_database(context, record).await?;
    let (found, metadata) = (database.state()?, database.metadata().await?);
    let now_ms = unix_ms(context.current());
    // The new history begins with the present key: how it came to sign the old one is no matter.
    RotationStore::of_publisher(context.child("publisher_keys")).await?.clear().await?;
    let made = metadata.unwrap_or(CommitMetadata { sequence: 0, committed_at_ms: now_ms });
    let kind = record.parameters.kind();
    let base =
        Checkpoint::of_state(record.identity().id, kind, found, made, now_ms).sign(publisher);
    let ledger = Ledger::create(context, place(record.storage), database, base).await?;
    Ok(ledger.sync().await?)
}

/// Brings the database up to its log, and gathers the log's idempotency keys. With `discard`, what prevents that is
/// given up, and said.
async fn catch_up<E: Runtime>(
    context: &E,
    record: &Record,
    known: &mut Idempotency,
    discard: bool,
) -> Result<Option<Discarded>, Error> {
    let whole = require_all(context, record).await;
    let mut newest = None;
    let marked = CommitLog::given_out(&context.child("mark"), GENERATION).await;
    let read = match &whole {
        // Opening would make what is missing.
        Err(_) if !discard => Ok(()),
        _ => read_log(context, record, known, &mut newest).await,
    };
    let is_cut = matches!(
        &read,
        Err(Error::Ledger(ledger::Error::CutShort { .. } | ledger::Error::Unmarked { .. }))
    );
    let is_read = read.is_ok() || is_cut;
    let newest = newest.max(marked);
    let Err(error) = whole.and(read) else { return Ok(None) };
    if !discard {
        return Err(Error::Unreadable(Box::new(error)));
    }
    tracing::warn!(%error, "going on with the database as it is");
    let metadata = open_database(context, record).await?.metadata().await?;
    let kept = metadata.map_or(0, |metadata| metadata.sequence);
    let idempotency_keys = if is_read { 0 } else { std::mem::take(known).count() };
    // Without the mark, the end of the log may be another one than it was.
    let is_exact = marked.is_some();
    Ok(Some(Discarded { kept, found: newest, is_exact, idempotency_keys }))
}

async fn read_log<E: Runtime>(
    context: &E,
    record: &Record,
    known: &mut Idempotency,
    newest: &mut Option<u64>,
) -> Result<(), Error> {
    let id = record.identity().id;
    known.carry(&CarriedKeys::open(context.child("carried")).await?, id);
    let ledger = Ledger::open(context, place(record.storage), false, |commit| {
        *newest = Some(commit.sequence());
        known.remember(commit);
    })
    .await?
    .ok_or_else(|| Error::Missing("every record of the commit log is".into()))?;
    let head = ledger.head();
    known.forget_before(ledger.log().bounds().first);
    ledger.close().await;
    if head.checkpoint.database != id {
        return Err(Error::Mismatch(format!(
            "the commit log is of database {}, the storage record of {id}",
            head.checkpoint.database
        )));
    }
    Ok(())
}
