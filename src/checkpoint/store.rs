//! The newest checkpoint known, kept across restarts.
//!
//! The commit log keeps every state that was *adopted*. A replica that is catching up knows of
//! later states; were those forgotten by a restart, a server could show an older history once
//! more. So the newest one known is kept here too.

use super::SignedCheckpoint;
use crate::runtime::Runtime;
use commonware_storage::metadata::{Config, Metadata};
use commonware_utils::sequence::U64;

const NEWEST: u64 = 0;

/// Durable, forward-only memory of the newest checkpoint.
pub struct Store<E: Runtime> {
    metadata: Option<Metadata<E, U64, SignedCheckpoint>>,
}

impl<E: Runtime> Store<E> {
    /// Opens the store.
    pub async fn open(context: E) -> Result<Self, commonware_storage::metadata::Error> {
        let config = Config { partition: "newest-checkpoint".into(), codec_config: () };
        Ok(Self { metadata: Some(Metadata::init(context, config).await?) })
    }

    /// The newest checkpoint kept.
    pub fn newest(&self) -> Option<&SignedCheckpoint> {
        self.metadata.as_ref()?.get(&U64::new(NEWEST))
    }

    /// Forgets it: it was another database's. Durable on return.
    pub async fn clear(&mut self) -> Result<(), commonware_storage::metadata::Error> {
        if let Some(mut metadata) = self.metadata.take() {
            metadata.clear();
            self.metadata = Some(metadata.sync().await?);
        }
        Ok(())
    }

    /// Keeps `checkpoint` if it is newer than what is kept. Durable on return.
    pub async fn keep(
        &mut self,
        checkpoint: &SignedCheckpoint,
    ) -> Result<(), commonware_storage::metadata::Error> {
        let key = |signed: &SignedCheckpoint| {
            (signed.checkpoint.sequence, signed.checkpoint.signed_at_ms)
        };
        if self.newest().is_some_and(|newest| key(newest) >= key(checkpoint)) {
            return Ok(());
        }
        if let Some(mut metadata) = self.metadata.take() {
            metadata.put(U64::new(NEWEST), checkpoint.clone());
            self.metadata = Some(metadata.sync().await?);
        }
        Ok(())
    }
}
