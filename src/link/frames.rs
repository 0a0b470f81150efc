//! Two tasks that own the two directions of a channel.

use super::IDLE_TIMEOUT;
use crate::runtime::Runtime;
use bytes::Bytes;
use commonware_runtime::Handle;
use commonware_stream::{Receiver, Sender};
use std::{convert::Infallible, time::Duration};
use tokio::sync::{mpsc, oneshot};

/// Frames that may wait to be written. What they hold of a budget bounds their bytes.
const OUTGOING_FRAMES: usize = 64;
/// Frames received that may wait to be worked on.
const INCOMING_FRAMES: usize = 4;
/// Frames written with one call, and the bytes after which no further one joins them: between two
/// calls one can see that a slow peer reads at all.
const WRITE_FRAMES: usize = 16;
const WRITE_BYTES: usize = 256 * 1024;

/// How long the frames of a connection that ends may take to be written.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// A frame on its way out.
pub struct Outgoing {
    /// None where only the moment counts at which everything before is written.
    frame: Option<Bytes>,
    held: Option<Box<dyn Send>>,
}

impl Outgoing {
    /// A frame that keeps `held` until it is written, or lost with its connection.
    pub fn holding(frame: Bytes, held: Box<dyn Send>) -> Self {
        Self { frame: Some(frame), held: Some(held) }
    }
}

impl From<Bytes> for Outgoing {
    fn from(frame: Bytes) -> Self {
        Self { frame: Some(frame), held: None }
    }
}

/// A channel as two queues. Dropping it closes the connection.
pub struct Frames {
    /// Frames to send.
    pub outgoing: mpsc::Sender<Outgoing>,
    /// Frames received; closed when the connection is.
    pub incoming: mpsc::Receiver<Bytes>,
    tasks: [Handle<()>; 2],
}

impl Frames {
    /// Splits into the queues and what keeps the connection open.
    pub fn split(mut self) -> (mpsc::Sender<Outgoing>, mpsc::Receiver<Bytes>, Guard) {
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
    let (outgoing, to_send) = mpsc::channel(OUTGOING_FRAMES);
    let (received, incoming) = mpsc::channel(INCOMING_FRAMES);
    let writer = context.child("writer").spawn(move |_| write(sender, to_send));
    let reader = context.child("reader").spawn(move |context| read(context, receiver, received));
    Frames { outgoing, incoming, tasks: [writer, reader] }
}

/// Waits until what is queued is written, the connection is closed, or that takes too long: before a connection is
/// dropped, which drops its queue.
pub async fn flush<E: Runtime>(context: &E, outgoing: &mpsc::Sender<Outgoing>) {
    // Dropped by the writer once everything before it is written.
    let (held, written) = oneshot::channel::<Infallible>();
    let last = Outgoing { frame: None, held: Some(Box::new(held)) };
    let flushed = async {
        if outgoing.send(last).await.is_ok() {
            let _ = written.await;
        }
    };
    tokio::select! {
        biased;
        () = flushed => {}
        () = context.sleep(FLUSH_MAX) => {}
    }
}

/// Writes frames until the queue or the connection closes.
async fn write(mut sender: impl Sender, mut queue: mpsc::Receiver<Outgoing>) {
    let mut frames = Vec::with_capacity(WRITE_FRAMES);
    let mut held = Vec::with_capacity(WRITE_FRAMES);
    while let Some(first) = queue.recv().await {
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(Outgoing { frame, held: holds }) = next {
            bytes += frame.as_ref().map_or(0, Bytes::len);
            frames.extend(frame);
            held.extend(holds);
            let is_full = frames.len() >= WRITE_FRAMES || bytes >= WRITE_BYTES;
            next = if is_full { None } else { queue.try_recv().ok() };
        }
        if !frames.is_empty()
            && let Err(error) = sender.send_many(frames.drain(..)).await
        {
            tracing::debug!(%error, "connection closed while writing");
            return;
        }
        held.clear();
    }
}

/// Reads frames until the connection closes, is silent for too long, or nobody listens.
async fn read<E: Runtime>(context: E, mut receiver: impl Receiver, queue: mpsc::Sender<Bytes>) {
    loop {
        // The timer ends the whole connection, so nobody can meet a half-read frame.
        let frame = tokio::select! {
            biased;
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
