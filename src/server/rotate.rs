//! A new publisher key takes over, with a record that both keys sign.

use super::{
    core::{Error, place},
    opening::{check_layout, require_all},
    run::{failure, load_existing_key, load_key},
    state::{Stage, State},
};
use crate::{
    checkpoint::{Rotation, SignedCheckpoint, rotation::ROTATIONS_MAX, unix_ms},
    commit_log::Commit,
    daemon::{self, Failure},
    database::record::CommitMetadata,
    directory::Role,
    exit, keys,
    ledger::Ledger,
    rotations::RotationStore,
    runtime::Runtime,
};
use commonware_cryptography::{
    Signer as _,
    ed25519::{PrivateKey, PublicKey},
};
use std::path::{Path, PathBuf};

/// What a rotation led to.
pub struct Rotated {
    /// The key that signs now.
    pub successor: PublicKey,
    /// First sequence that it signed.
    pub from: u64,
    /// Where the retired private key was kept, if it was in the storage directory.
    pub kept: Option<PathBuf>,
    successor_file: Option<PathBuf>,
}

/// Lets `new_key` take over in the storage of a stopped server; one is made where none is given.
/// Safe to run again if it was interrupted.
pub fn rotate_key(
    storage_dir: &Path,
    publisher_key: Option<&Path>,
    new_key: Option<&Path>,
) -> Result<Rotated, Failure> {
    if publisher_key.is_some() != new_key.is_some() {
        let text = "--publisher-key and --new-key belong together: both in files of yours, or both in the storage directory";
        return Err(Failure::new(exit::USAGE, text));
    }
    let successor_path = storage_dir.join("publisher.key.next");
    let mut rotated = daemon::with_storage(storage_dir, Role::Server, |context| async move {
        let retired = load_existing_key(publisher_key, storage_dir, "publisher.key")?;
        let successor = load_key(new_key, storage_dir, "publisher.key.next")?;
        hand_over(&context, &retired, &successor).await.map_err(failure)
    })?;
    let public = hex::encode(&rotated.successor);
    keys::write_public_file(&daemon::public_dir(storage_dir), "publisher.pub", &public)?;
    if new_key.is_none() {
        rotated.kept = Some(exchange(storage_dir, &successor_path, rotated.from)?);
        rotated.successor_file = Some(successor_path);
    }
    Ok(rotated)
}

impl Rotated {
    /// Removes the successor's own file. Last, when the operator was told: without it, another run makes another
    /// successor.
    pub fn finish(&self) -> Result<(), Failure> {
        if let Some(path) = &self.successor_file {
            std::fs::remove_file(path)?;
        }
        Ok(())
    }
}

/// Makes the successor's key the publisher's; the old one is kept under another name. Safe to do again.
fn exchange(storage_dir: &Path, successor: &Path, from: u64) -> Result<PathBuf, Failure> {
    let current = storage_dir.join("publisher.key");
    let kept = storage_dir.join(format!("publisher.key.retired-{from}"));
    if !kept.exists() {
        std::fs::hard_link(&current, &kept)?;
    }
    let link = storage_dir.join("publisher.key.new");
    // One file under both names is not moved; what is left of an earlier run is.
    remove_if_there(&link)?;
    std::fs::hard_link(successor, &link)?;
    std::fs::rename(&link, &current)?;
    remove_if_there(&link)?;
    std::fs::File::open(storage_dir)?.sync_all()?;
    Ok(kept)
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Lets `successor` sign from the next commit on, in the storage of `context`. Safe to run again with the same keys if it
/// was interrupted.
///
/// # Errors
///
/// Names what is wrong with the storage or the keys; nothing was changed then.
pub async fn hand_over<E: Runtime>(
    context: &E,
    retired: &PrivateKey,
    successor: &PrivateKey,
) -> Result<Rotated, Error> {
    let mismatch = |text: String| Error::Mismatch(text);
    let record = State::open(context.child("state")).await?.get();
    let record = record.ok_or_else(|| mismatch("no database was made in this directory".into()))?;
    check_layout(&record.parameters)?;
    match record.stage {
        Stage::Complete => require_all(context, &record).await?,
        Stage::EpochPending => {
            return Err(mismatch("'syncctl new-epoch' was interrupted: run it again".into()));
        }
        Stage::Creating => {
            let text = "the first start of the server was interrupted: start it again";
            return Err(mismatch(text.into()));
        }
    }
    let ledger = Ledger::open(context, place(record.storage), false, |_| {}).await?;
    let ledger = ledger.ok_or_else(|| mismatch("the commit log is missing".into()))?;
    let head = ledger.head();
    let mut store = RotationStore::of_publisher(context.child("publisher_keys")).await?;
    let mut rotations = store.all();
    let (old, new) = (retired.public_key(), successor.public_key());
    let last = rotations.0.last().filter(|last| last.successor == new);
    let from = last.map_or(head.checkpoint.sequence + 1, |last| last.from);
    if last.is_none() {
        check(&head, &old, &new, rotations.0.len())?;
        if rotations.0.iter().any(|past| past.retired == new) {
            return Err(mismatch(format!("{new} was retired before and cannot come back")));
        }
        rotations.0.push(Rotation::new(head.checkpoint.database, from, retired, successor));
        // Written before the successor signs anything: whoever sees its signature can be told why.
        store.keep(&rotations).await?;
    }
    if head.publisher != new {
        sign_first(context, &ledger, successor).await?;
    }
    ledger.sync().await?;
    ledger.close().await;
    Ok(Rotated { successor: new, from, kept: None, successor_file: None })
}

fn check(
    head: &SignedCheckpoint,
    old: &PublicKey,
    new: &PublicKey,
    rotations: usize,
) -> Result<(), Error> {
    if head.publisher != *old {
        return Err(Error::Mismatch(format!(
            "the newest commit was signed by publisher key {}, but the key to retire is {old}",
            head.publisher
        )));
    }
    if old == new {
        return Err(Error::Mismatch(format!("{new} is the publisher key already")));
    }
    if rotations >= ROTATIONS_MAX {
        return Err(Error::Mismatch(format!(
            "{ROTATIONS_MAX} keys were retired, no more are allowed: begin a new epoch"
        )));
    }
    Ok(())
}

/// The successor's first commit, which changes nothing but who signs.
async fn sign_first<E: Runtime>(
    context: &E,
    ledger: &Ledger<E>,
    successor: &PrivateKey,
) -> Result<(), Error> {
    let head = ledger.head().checkpoint;
    let now_ms = unix_ms(context.current());
    let metadata = CommitMetadata { sequence: head.sequence + 1, committed_at_ms: now_ms };
    let prepared = ledger.prepare(&[], metadata).await?;
    let state = prepared.state;
    let (changes, requests) = (Vec::new(), Vec::new());
    let commit = Commit::following(head, state, metadata, changes, requests, now_ms, successor);
    Ok(ledger.commit(&[commit], prepared).await?)
}
