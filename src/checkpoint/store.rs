//! The newest checkpoint known, kept across restarts, and evidence of equivocation.
//!
//! The commit log keeps every state that was *adopted*. A replica that is catching up knows of
//! later states; were those forgotten by a restart, a server could show an older history once
//! more. So the newest one known is kept here too.

use super::{FORMAT_VERSION, SignedCheckpoint};
use crate::runtime::Runtime;
use commonware_storage::metadata::{Config, Metadata};
use commonware_utils::sequence::U64;
use serde_json::json;
use std::path::{Path, PathBuf};

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

/// Two checkpoints that one publisher must not have signed both.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// What was verified before.
    pub known: SignedCheckpoint,
    /// What contradicts it.
    pub offered: SignedCheckpoint,
    /// Why.
    pub reason: String,
    /// The response that shows the break, where a proof was needed to see it.
    pub response: Option<Vec<u8>>,
}

impl Evidence {
    /// Writes the evidence to `directory/evidence/`, once for each pair of checkpoints.
    pub fn write(&self, directory: &Path) -> std::io::Result<PathBuf> {
        let directory = directory.join("evidence");
        std::fs::create_dir_all(&directory)?;
        let name = format!(
            "equivocation-{}-{}.json",
            self.offered.checkpoint.sequence,
            &self.offered.checkpoint.root.to_string()[..16]
        );
        let path = directory.join(name);
        let content = json!({
            "format": FORMAT_VERSION,
            "reason": self.reason,
            "known": self.known.to_json(),
            "offered": self.offered.to_json(),
            "response": self.response.as_ref().map(hex::encode),
        });
        let file = tempfile::NamedTempFile::new_in(&directory)?;
        serde_json::to_writer_pretty(&file, &content)?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok(path)
    }
}
