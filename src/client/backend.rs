//! The read API of a replica.

use super::{reader::Reader, state::ReplicaState};
use crate::{
    api::{Backend, Writer},
    checkpoint::SignedCheckpoint,
    documents::Status,
    reads::{Export, Page, ReadError, Subject, View},
    runtime::Runtime,
    verify::ProofFile,
};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};

/// Answers from the verified state.
pub struct ClientBackend<E: Runtime>(Reader<E>);

impl<E: Runtime> ClientBackend<E> {
    /// A backend over `replica`.
    pub const fn new(context: E, replica: Arc<ReplicaState<E>>) -> Self {
        Self(Reader::new(context, replica))
    }
}

#[async_trait::async_trait]
impl<E: Runtime> Backend for ClientBackend<E> {
    fn status(&self) -> Status {
        self.0.replica().status(self.0.context().moment())
    }

    fn view(&self) -> Option<View> {
        self.0.replica().view(self.0.context().moment())
    }

    fn checkpoint(&self) -> Option<SignedCheckpoint> {
        self.0.replica().head()
    }

    async fn get(&self, key: &[u8]) -> Result<(View, Option<Bytes>), ReadError> {
        let (head, value) = self.0.get(key).await?;
        Ok((self.0.replica().view_of(&head, self.0.context().moment()), value))
    }

    async fn entries(&self, from: u64, limit: usize, bytes_max: usize) -> Result<Page, ReadError> {
        self.0.entries(from, limit, bytes_max).await
    }

    async fn prove(&self, subject: Subject) -> Result<ProofFile, ReadError> {
        self.0.prove(subject).await
    }

    async fn wait_for_size(&self, size: u64, timeout: Duration) -> bool {
        let mut sizes = self.0.replica().size.subscribe();
        tokio::select! {
            reached = sizes.wait_for(|now| *now >= size) => reached.is_ok(),
            () = self.0.context().sleep(timeout) => false,
        }
    }

    async fn export(&self) -> Result<Export, ReadError> {
        self.0.export().await
    }

    fn writer(&self) -> Option<Arc<dyn Writer>> {
        None
    }
}
