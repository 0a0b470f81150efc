//! What a replica does when it cannot write: it serves what it verified, says so, and tries again.
//!
//! A write that fails half way costs the library's handle, and with a database's handle the reads. So room is looked
//! for before anything is written: without it nothing is begun, and reads go on. What fails all the same, because the
//! file system did not tell, is opened again at the newest durable record, with pauses.

use super::state::ReplicaState;
use crate::{
    database::{self, Place},
    ledger::{self, Ledger},
    runtime::{Runtime, StorageGuard, StorageRoom},
    storage_record,
    telemetry::storage::StorageErrors,
};
use commonware_runtime::{Blob as _, WriteOptions};
use commonware_utils::sync::AsyncMutex;
use std::{sync::Arc, time::Duration};

/// Bytes that must be free before commits are applied or a state is synced: what 64 commits of at most 4 MiB together
/// take in the log and in the database, and what buffers hold, several times over.
pub const COMMIT_ROOM: u64 = 32 * 1024 * 1024;
/// Bytes that must be free for the upkeep, which also gives room back.
pub const UPKEEP_ROOM: u64 = 8 * 1024 * 1024;

/// The disk below a replica.
pub struct Disk {
    /// Whether the storage is where it was.
    pub guard: StorageGuard,
    /// Whether there is room.
    pub room: StorageRoom,
    /// Counts what fails.
    pub errors: StorageErrors,
    /// Held while the storage is opened again: since when it cannot be read.
    unreadable_since: AsyncMutex<Option<Duration>>,
}

impl Disk {
    /// The disk that `guard` and `room` tell of.
    pub fn new(guard: StorageGuard, room: StorageRoom, errors: StorageErrors) -> Self {
        Self { guard, room, errors, unreadable_since: AsyncMutex::default() }
    }

    /// Opens a replica's ledger, with or without room.
    pub async fn open<E: Runtime>(
        &self,
        context: &E,
        place: Place,
    ) -> Result<Option<Ledger<E>>, ledger::Error> {
        match self.check(UPKEEP_ROOM) {
            Ok(()) => Ledger::open(context, place, true, |_| {}).await,
            Err(reason) => {
                tracing::warn!(reason, "opening the storage without room");
                Ledger::open_without_room(context, place).await
            }
        }
    }

    /// Why `bytes` cannot be written, if they cannot.
    pub fn check(&self, bytes: u64) -> Result<(), String> {
        (self.room)(bytes)
    }
}

/// How long a replica goes on that cannot be read although there is room.
pub const UNREADABLE_MAX: Duration = Duration::from_secs(30);
/// How often room is looked for while a state sync writes.
const ROOM_INTERVAL: Duration = Duration::from_millis(250);

/// Ends when there is no more room, with the reason.
pub async fn out_of_room<E: Runtime>(context: E, replica: Arc<ReplicaState<E>>) -> String {
    loop {
        context.sleep(ROOM_INTERVAL).await;
        if let Err(reason) = replica.disk.check(COMMIT_ROOM) {
            return reason;
        }
    }
}

/// Whether trying again later may help: the disk was unable, and what is on it is neither damaged nor gone.
pub const fn is_passing(error: &ledger::Error) -> bool {
    !error.is_damage() && !error.is_gone()
}

/// Partition that is written to find out whether the disk takes anything.
const PROBE: &str = "probe";
/// Bytes written to it.
const PROBE_BYTES: usize = 256 * 1024;

/// Writes something, and removes it: quotas and the number of files are not seen in the free bytes.
async fn probe<E: Runtime>(context: &E) -> Result<(), database::Error> {
    let failed = |error: commonware_runtime::Error| {
        database::Error::Storage(format!("the disk takes nothing: {error}"))
    };
    let written = async {
        let (blob, _) = context.open(PROBE, b"probe").await?;
        let bytes = vec![0; PROBE_BYTES];
        blob.write_at(0, bytes, WriteOptions::default()).await?;
        blob.sync().await
    };
    let written = written.await.map_err(failed);
    remove_probe(context).await?;
    written
}

/// Removes what an interrupted probe left.
pub async fn remove_probe<E: Runtime>(context: &E) -> Result<(), database::Error> {
    Ok(storage_record::remove_partition(context, PROBE).await?)
}

impl<E: Runtime> ReplicaState<E> {
    /// Opens the ledger again that failed, at its newest durable record. While it can still be read, only once there is
    /// room: until then it is served on.
    ///
    /// The outer error is final: the data are damaged or gone, or they could not be read for [`UNREADABLE_MAX`] although
    /// there is room. The runtime remembers a failed sync of a file for as long as the process lives, so another one may
    /// do better. The inner one says why it could not be opened now; it may be tried again.
    pub async fn reopen(
        &self,
        context: &E,
        failed: &Arc<Ledger<E>>,
    ) -> Result<Result<(), ledger::Error>, ledger::Error> {
        let mut unreadable_since = self.disk.unreadable_since.lock().await;
        let current = self.ledger.load_full();
        if !current.is_some_and(|current| Arc::ptr_eq(&current, failed)) {
            return Ok(Ok(()));
        }
        let error = match self.try_reopen(context, failed).await {
            Ok(()) => {
                *unreadable_since = None;
                return Ok(Ok(()));
            }
            Err(error) if !is_passing(&error) => return Err(error),
            Err(error) => error,
        };
        if failed.is_readable().await || self.disk.check(UPKEEP_ROOM).is_err() {
            *unreadable_since = None;
            return Ok(Err(error));
        }
        let now = context.monotonic();
        let since = *unreadable_since.get_or_insert(now);
        if now.saturating_sub(since) >= UNREADABLE_MAX { Err(error) } else { Ok(Err(error)) }
    }

    async fn try_reopen(&self, context: &E, failed: &Arc<Ledger<E>>) -> Result<(), ledger::Error> {
        self.disk.guard.check().map_err(database::Error::Gone)?;
        if failed.is_readable().await {
            self.disk.check(COMMIT_ROOM).map_err(database::Error::Storage)?;
            probe(context).await?;
        }
        let head = failed.head();
        failed.close().await;
        let opened = self.disk.open(&context.child("reopened"), failed.place()).await?;
        let opened =
            opened.filter(|opened| opened.head().checkpoint.sequence >= head.checkpoint.sequence);
        let opened = opened.ok_or_else(|| {
            let text = format!("commit {} is not in the log any more", head.checkpoint.sequence);
            database::Error::Corrupt(text)
        })?;
        opened.guard_with(&self.disk.guard);
        let head = opened.head();
        self.ledger.store(Some(Arc::new(opened)));
        self.known.adopted(std::iter::once(&head), context.moment()).await;
        tracing::info!(sequence = head.checkpoint.sequence, "the storage was opened again");
        Ok(())
    }
}
