//! The API of a server: reads from its ledger, writes through its publisher.

use super::publisher::{Handle, Source};
use crate::{
    api::{Backend, Room, WriteError, WriteRequest, Writer},
    checkpoint::{Rotations, SignedCheckpoint},
    database::types::Mode,
    documents::{Receipt, Role, Status},
    ledger::Ledger,
    reads::{Export, Page, ReadError, Subject, View, prove, read_entries, stream_export},
    runtime::Runtime,
    verify::ProofFile,
    wire::COMMIT_BYTES_MAX,
};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};

/// Answers from the ledger.
pub struct ServerBackend<E: Runtime> {
    /// The runtime, for its clock.
    pub context: E,
    /// What reads see.
    pub ledger: Arc<Ledger<E>>,
    /// How the publisher's keys followed each other.
    pub rotations: Rotations,
    /// Where writes go.
    pub writer: Arc<ServerWriter>,
}

/// Hands writes to the publisher.
pub struct ServerWriter {
    /// The way to the publisher; taken when the server drains.
    pub publisher: arc_swap::ArcSwapOption<Handle>,
    /// Longest value accepted.
    pub value_length_max: usize,
}

fn view(head: &SignedCheckpoint) -> View {
    let checkpoint = &head.checkpoint;
    View {
        database: checkpoint.database,
        size: checkpoint.size,
        root: checkpoint.root,
        lag_seconds: 0.0,
    }
}

impl<E: Runtime> ServerBackend<E> {
    fn refuse_compact(&self) -> Result<(), ReadError> {
        match self.ledger.mode() {
            Mode::Full => Ok(()),
            Mode::Compact => Err(ReadError::compact()),
        }
    }
}

#[async_trait::async_trait]
impl<E: Runtime> Backend for ServerBackend<E> {
    fn status(&self) -> Status {
        let checkpoint = self.ledger.head().checkpoint;
        Status {
            role: Role::Server,
            version: crate::VERSION.into(),
            family: Some(checkpoint.family),
            mode: Some(self.ledger.mode()),
            hash: Some(checkpoint.hash),
            database: Some(checkpoint.database),
            size: checkpoint.size,
            floor: checkpoint.floor,
            root: Some(checkpoint.root),
            sequence: checkpoint.sequence,
            committed_at: checkpoint.committed_at_ms,
            signed_at: checkpoint.signed_at_ms,
            client: None,
        }
    }

    fn view(&self) -> Option<View> {
        Some(view(&self.ledger.head()))
    }

    fn checkpoint(&self) -> Option<SignedCheckpoint> {
        Some(self.ledger.head())
    }

    async fn get(&self, key: &[u8]) -> Result<(View, Option<Bytes>), ReadError> {
        self.refuse_compact()?;
        let answer = self.ledger.get(key).await;
        let (head, value) = answer.map_err(|error| ReadError::Internal(error.to_string()))?;
        Ok((view(&head), value))
    }

    async fn entries(&self, from: u64, limit: usize, bytes_max: usize) -> Result<Page, ReadError> {
        self.refuse_compact()?;
        read_entries(&self.ledger, from, limit, bytes_max, view).await
    }

    async fn prove(&self, subject: Subject) -> Result<ProofFile, ReadError> {
        self.refuse_compact()?;
        prove(&self.ledger, self.rotations.clone(), subject).await
    }

    async fn wait_for_size(&self, size: u64, timeout: Duration) -> bool {
        let mut heads = self.ledger.subscribe();
        tokio::select! {
            reached = heads.wait_for(|head| head.checkpoint.size >= size) => reached.is_ok(),
            () = self.context.sleep(timeout) => false,
        }
    }

    async fn export(&self) -> Result<Export, ReadError> {
        self.refuse_compact()?;
        let (head, exporter, hold) = self.ledger.export().await;
        Ok(stream_export(view(&head), exporter, hold))
    }

    fn writer(&self) -> Option<Arc<dyn Writer>> {
        Some(self.writer.clone())
    }
}

impl ServerWriter {
    fn handle(&self) -> Result<Arc<Handle>, WriteError> {
        let stopping = || WriteError::Unavailable("the server is stopping".into());
        self.publisher.load_full().ok_or_else(stopping)
    }
}

#[async_trait::async_trait]
impl Writer for ServerWriter {
    fn reserve(&self, bytes: usize) -> Result<Room, WriteError> {
        self.handle()?.reserve(bytes)
    }

    async fn write(&self, request: WriteRequest, room: Room) -> Result<Receipt, WriteError> {
        self.handle()?.write_in(room, request, Source::Api).await
    }

    fn batch_bytes_max(&self) -> usize {
        COMMIT_BYTES_MAX
    }

    fn value_length_max(&self) -> usize {
        self.value_length_max
    }
}
