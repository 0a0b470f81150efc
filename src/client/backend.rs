//! The read API of a replica.

use super::replica::Replica;
use crate::{
    api::{Backend, Writer},
    checkpoint::SignedCheckpoint,
    database::types::Mode,
    documents::Status,
    reads::{Export, Page, ReadError, Subject, View, prove, read_entries, stream_export},
    runtime::Runtime,
    verify::ProofFile,
};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};

/// Answers from the verified state.
pub struct ClientBackend<E: Runtime> {
    context: E,
    replica: Arc<Replica<E>>,
}

impl<E: Runtime> ClientBackend<E> {
    /// A backend over `replica`.
    pub const fn new(context: E, replica: Arc<Replica<E>>) -> Self {
        Self { context, replica }
    }
}

#[async_trait::async_trait]
impl<E: Runtime> Backend for ClientBackend<E> {
    fn status(&self) -> Status {
        self.replica.status(self.context.moment())
    }

    fn view(&self) -> Option<View> {
        self.replica.view(self.context.moment())
    }

    fn checkpoint(&self) -> Option<SignedCheckpoint> {
        self.replica.head()
    }

    async fn get(&self, key: &[u8]) -> Result<(View, Option<Bytes>), ReadError> {
        loop {
            let ledger = self.readable()?;
            match ledger.get(key).await {
                Ok((head, value)) => {
                    return Ok((self.replica.view_of(&head, self.context.moment()), value));
                }
                // A new generation was adopted between the two lines above: ask that one.
                Err(crate::database::Error::Poisoned) if self.replaced(&ledger) => {}
                Err(error) => return Err(ReadError::Internal(error.to_string())),
            }
        }
    }

    async fn entries(&self, from: u64, limit: usize, bytes_max: usize) -> Result<Page, ReadError> {
        let view = |head: &SignedCheckpoint| self.replica.view_of(head, self.context.moment());
        loop {
            let ledger = self.readable()?;
            match read_entries(&ledger, from, limit, bytes_max, view).await {
                Err(ReadError::Internal(_)) if self.replaced(&ledger) => {}
                result => return result,
            }
        }
    }

    async fn prove(&self, subject: Subject) -> Result<ProofFile, ReadError> {
        loop {
            let ledger = self.readable()?;
            let rotations = self.replica.known.rotations();
            match prove(&ledger, rotations, subject.clone()).await {
                Err(ReadError::Internal(_)) if self.replaced(&ledger) => {}
                result => return result,
            }
        }
    }

    async fn wait_for_size(&self, size: u64, timeout: Duration) -> bool {
        let mut sizes = self.replica.size.subscribe();
        tokio::select! {
            reached = sizes.wait_for(|now| *now >= size) => reached.is_ok(),
            () = self.context.sleep(timeout) => false,
        }
    }

    async fn export(&self) -> Result<Export, ReadError> {
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

    fn writer(&self) -> Option<Arc<dyn Writer>> {
        None
    }
}

impl<E: Runtime> ClientBackend<E> {
    /// The state that reads see, where there are values to read.
    fn readable(&self) -> Result<Arc<crate::ledger::Ledger<E>>, ReadError> {
        if self.replica.mode == Mode::Compact {
            return Err(ReadError::compact());
        }
        self.replica.ledger.load_full().ok_or(ReadError::NoVerifiedState)
    }

    /// Whether `ledger` is no longer the one that serves.
    fn replaced(&self, ledger: &Arc<crate::ledger::Ledger<E>>) -> bool {
        self.replica.ledger.load_full().is_some_and(|now| !Arc::ptr_eq(&now, ledger))
    }
}
