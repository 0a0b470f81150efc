//! Reads of a replica's verified state.

use super::state::ReplicaState;
use crate::{
    checkpoint::SignedCheckpoint,
    database::{self, types::Mode},
    ledger::Ledger,
    reads::{Export, Page, ReadError, Subject, prove, read_entries, stream_export},
    runtime::Runtime,
    verify::ProofFile,
};
use bytes::Bytes;
use std::sync::Arc;

/// Reads whatever state the replica serves at that moment. Any of its futures may be dropped.
pub struct Reader<E: Runtime> {
    context: E,
    replica: Arc<ReplicaState<E>>,
}

impl<E: Runtime> Reader<E> {
    /// A reader of `replica`.
    pub const fn new(context: E, replica: Arc<ReplicaState<E>>) -> Self {
        Self { context, replica }
    }

    /// What is read from, and how it stands.
    pub const fn replica(&self) -> &Arc<ReplicaState<E>> {
        &self.replica
    }

    /// The runtime, for its clock.
    pub const fn context(&self) -> &E {
        &self.context
    }

    /// The value of `key` and the state it was read from.
    pub async fn get(&self, key: &[u8]) -> Result<(SignedCheckpoint, Option<Bytes>), ReadError> {
        loop {
            let ledger = self.readable()?;
            match ledger.get(key).await {
                Ok(read) => return Ok(read),
                // A new generation was adopted between the two lines above: ask that one.
                Err(database::Error::Poisoned) if self.replaced(&ledger) => {}
                Err(error) => return Err(ReadError::Internal(error.to_string())),
            }
        }
    }

    /// Values of a log from `from` on, until there are `limit` or about `bytes_max` bytes of them (`keyless`).
    pub async fn entries(
        &self,
        from: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Page, ReadError> {
        let view = |head: &SignedCheckpoint| self.replica.view_of(head, self.context.moment());
        loop {
            let ledger = self.readable()?;
            match read_entries(&ledger, from, limit, bytes_max, view).await {
                Err(ReadError::Internal(_)) if self.replaced(&ledger) => {}
                result => return result,
            }
        }
    }

    /// Proves `subject` of the state served.
    pub async fn prove(&self, subject: Subject) -> Result<ProofFile, ReadError> {
        loop {
            let ledger = self.readable()?;
            let rotations = self.replica.known.rotations();
            match prove(&ledger, rotations, subject.clone()).await {
                Err(ReadError::Internal(_)) if self.replaced(&ledger) => {}
                result => return result,
            }
        }
    }

    /// Starts an export of the state served.
    pub async fn export(&self) -> Result<Export, ReadError> {
        loop {
            let ledger = self.readable()?;
            let (head, exporter, hold) = ledger.export().await;
            // From here on its generation is kept, unless it was replaced just before.
            if !self.replaced(&ledger) {
                let view = self.replica.view_of(&head, self.context.moment());
                return Ok(stream_export(view, exporter, hold));
            }
        }
    }

    /// The state that reads see, where there are values to read.
    fn readable(&self) -> Result<Arc<Ledger<E>>, ReadError> {
        if self.replica.mode == Mode::Compact {
            return Err(ReadError::compact());
        }
        self.replica.ledger.load_full().ok_or(ReadError::NoVerifiedState)
    }

    /// Whether `ledger` is no longer the one that serves.
    fn replaced(&self, ledger: &Arc<Ledger<E>>) -> bool {
        self.replica.ledger.load_full().is_some_and(|now| !Arc::ptr_eq(&now, ledger))
    }
}
