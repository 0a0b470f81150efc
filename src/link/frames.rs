//! Two tasks that own the two directions of a channel.

use super::IDLE_TIMEOUT;
use crate::runtime::Runtime;
use bytes::Bytes;
use commonware_runtime::Handle;
use commonware_stream::{Receiver, Sender};
use tokio::sync::mpsc;

/// Frames that may wait in one direction. With frames of response size this bounds what a peer
/// that does not read can make us hold.
const QUEUE_FRAMES: usize = 16;
/// Frames written with one call.
const WRITE_BATCH: usize = 16;

/// A channel as two queues. Dropping it closes the connection.
pub struct Frames {
    /// Frames to send.
    pub outgoing: mpsc::Sender<Bytes>,
    /// Frames received; closed when the connection is.
    pub incoming: mpsc::Receiver<Bytes>,
    tasks: [Handle<()>; 2],
}

impl Frames {
    /// Splits into the queues and what keeps the connection open.
    pub fn split(mut self) -> (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>, Guard) {
        let (_, closed) = mpsc::channel(1);
        let incoming = std::mem::replace(&mut self.incoming, closed);
        (self.outgoing.clone(), incoming, Guard(self))
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Keeps a split connection open.
pub struct Guard(#[allow(dead_code, reason = "held for its Drop")] Frames);

/// Starts the tasks that own `sender` and `receiver`.
pub fn spawn<E: Runtime>(context: &E, sender: impl Sender, receiver: impl Receiver) -> Frames {
    let (outgoing, to_send) = mpsc::channel(QUEUE_FRAMES);
    let (received, incoming) = mpsc::channel(QUEUE_FRAMES);
    let writer = context.child("writer").spawn(move |_| write(sender, to_send));
    let reader = context.child("reader").spawn(move |context| read(context, receiver, received));
    Frames { outgoing, incoming, tasks: [writer, reader] }
}

/// Writes frames until the queue or the connection closes.
async fn write(mut sender: impl Sender, mut queue: mpsc::Receiver<Bytes>) {
    let mut batch = Vec::with_capacity(WRITE_BATCH);
    loop {
        if queue.recv_many(&mut batch, WRITE_BATCH).await == 0 {
            return;
        }
        if let Err(error) = sender.send_many(batch.drain(..)).await {
            tracing::debug!(%error, "connection closed while writing");
            return;
        }
    }
}

/// Reads frames until the connection closes, is silent for too long, or nobody listens.
async fn read<E: Runtime>(context: E, mut receiver: impl Receiver, queue: mpsc::Sender<Bytes>) {
    loop {
        // The timer ends the whole connection, so nobody can meet a half-read frame.
        let frame = tokio::select! {
            frame = receiver.recv() => frame,
            () = context.sleep(IDLE_TIMEOUT) => {
                tracing::debug!("connection was silent for too long");
                return;
            }
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                tracing::debug!(%error, "connection closed while reading");
                return;
            }
        };
        if queue.send(frame.coalesce().into()).await.is_err() {
            return;
        }
    }
}
