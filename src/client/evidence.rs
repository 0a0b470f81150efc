//! Files of evidence against a publisher, in the storage directory.

use crate::{
    checkpoint::{Checkpoint, SignedCheckpoint},
    verify::Evidence,
};
use std::path::{Path, PathBuf};

/// Most files of evidence in one directory: whoever has the publisher's key could make any number.
pub const FILES_MAX: usize = 64;

/// Writes the evidence to `directory/evidence/`, once for each pair of checkpoints; `None` if
/// there is enough already.
pub fn write(evidence: &Evidence, directory: &Path) -> std::io::Result<Option<PathBuf>> {
    let directory = directory.join("evidence");
    // Never makes the storage directory again, where that is gone.
    crate::directory::make_inner(&directory)?;
    let part = |signed: &SignedCheckpoint| {
        let Checkpoint { sequence, root, .. } = &signed.checkpoint;
        format!("{sequence}-{}", &root.to_string()[..16])
    };
    let name = format!("equivocation-{}-{}.json", part(&evidence.known), part(&evidence.offered));
    let path = directory.join(name);
    if path.exists() {
        return Ok(Some(path));
    }
    if std::fs::read_dir(&directory)?.count() >= FILES_MAX {
        return Ok(None);
    }
    let file = tempfile::NamedTempFile::new_in(&directory)?;
    serde_json::to_writer_pretty(&file, &evidence.to_json())?;
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|error| error.error)?;
    Ok(Some(path))
}
