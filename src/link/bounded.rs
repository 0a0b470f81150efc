//! A stream that reads nothing larger than its owner expects.

use commonware_runtime::{Error, IoBufs, Stream};

/// What a frame may have beyond its message: length, tag of the cipher.
const OVERHEAD: usize = 64;

/// Refuses messages longer than a bound before any memory is set aside for them. The channel has
/// one bound for both directions; a server sends much longer messages than it has to accept.
pub struct Bounded<S> {
    stream: S,
    max: usize,
}

impl<S> Bounded<S> {
    /// Lets messages of at most `max` bytes through.
    pub const fn new(stream: S, max: usize) -> Self {
        Self { stream, max: max + OVERHEAD }
    }
}

impl<S: Stream> Stream for Bounded<S> {
    async fn recv(&mut self, len: usize) -> Result<IoBufs, Error> {
        if len > self.max {
            return Err(Error::RecvFailed);
        }
        self.stream.recv(len).await
    }

    fn peek(&self, max_len: usize) -> &[u8] {
        self.stream.peek(max_len)
    }
}
