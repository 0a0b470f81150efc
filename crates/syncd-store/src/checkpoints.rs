//! The newest checkpoint known, kept across restarts.
//!
//! The commit log keeps every state that was *adopted*. A replica that is catching up knows of
//! later states; were those forgotten by a restart, a server could show an older history once
//! more. So the newest one known is kept here too.

use crate::{
    runtime::Runtime,
    storage_record::{Error, Records},
};
use commonware_utils::sequence::U64;
use syncd_proto::checkpoint::SignedCheckpoint;

/// Partition of the record.
pub const PARTITION: &str = "newest-checkpoint";
const NEWEST: u64 = 0;

/// Durable, forward-only memory of the newest checkpoint.
pub struct CheckpointStore<E: Runtime> {
    records: Records<E, U64, SignedCheckpoint>,
}

impl<E: Runtime> CheckpointStore<E> {
    /// Opens the store. Makes nothing.
    pub async fn open(context: E) -> Result<Self, Error> {
        Ok(Self { records: Records::open(context, PARTITION).await? })
    }

    /// Whether a checkpoint, or that none is known, was ever written.
    pub const fn is_written(&self) -> bool {
        self.records.is_written()
    }

    /// Whether one copy was found damaged.
    pub const fn was_repaired(&self) -> bool {
        self.records.was_repaired()
    }

    /// The newest checkpoint kept.
    pub fn newest(&self) -> Option<&SignedCheckpoint> {
        self.records.get(&U64::new(NEWEST))
    }

    /// Forgets it: it was another database's, or there is none yet. Durable on return.
    pub async fn clear(&mut self) -> Result<(), Error> {
        self.records.update(std::collections::BTreeMap::clear).await
    }

    /// Keeps `checkpoint`, unless a later state is kept. Which of two signatures of one state is the
    /// better one, the caller decides. Durable on return.
    pub async fn keep(&mut self, checkpoint: &SignedCheckpoint) -> Result<(), Error> {
        let sequence = checkpoint.checkpoint.sequence;
        if self
            .newest()
            .is_some_and(|newest| newest.checkpoint.sequence > sequence || newest == checkpoint)
        {
            return Ok(());
        }
        self.records
            .update(|records| {
                records.insert(U64::new(NEWEST), checkpoint.clone());
            })
            .await
    }
}
