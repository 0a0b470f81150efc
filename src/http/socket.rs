//! A connection's socket, which does not wait for ever for a peer that takes nothing.

use super::{
    Patience,
    activity::{Activity, STALL_GRACE},
    answers::Answers,
};
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

/// How long the peer may take nothing of an answer that waits for it.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// The slowest that a peer may take an answer for longer than that, in bytes a second.
pub const WRITE_RATE_MIN: u64 = 16 * 1024;
/// Bytes that the kernel keeps for a peer beyond what it has room for.
pub const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// A TCP connection with a limit on how long an answer may wait for its peer.
///
/// While an answer waits, nothing more is read: what a peer asks ahead waits on its side.
pub(super) struct Socket {
    stream: TcpStream,
    activity: Arc<Activity>,
    answers: Answers,
    patience: Patience,
    /// Since when an answer waits.
    blocked_since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    /// Wants to read once the answer was taken.
    reader: Option<Waker>,
}

impl Socket {
    pub(super) fn new(
        stream: TcpStream,
        activity: Arc<Activity>,
        answers: Answers,
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
        Ok(Self {
            stream,
            activity,
            answers,
            patience: Patience::new(WRITE_STALL_MAX, WRITE_RATE_MIN),
            blocked_since: None,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            reader: None,
        })
    }

    /// Notes what became of a write.
    fn note(
        &mut self,
        written: Poll<io::Result<usize>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.taken(bytes);
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.block(cx),
        }
    }

    /// The peer took some of what waited.
    fn taken(&mut self, bytes: usize) {
        if let Some(since) = self.blocked_since.take() {
            self.patience.waited(since.elapsed());
            self.activity.set_blocked(false);
        }
        self.patience.moved(bytes);
        self.activity.moved(bytes);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// The peer is waited for.
    fn block(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let since = match self.blocked_since {
            Some(since) => since,
            None => {
                let now = Instant::now();
                self.blocked_since = Some(now);
                self.activity.set_blocked(true);
                self.look_again(now);
                now
            }
        };
        while self.timer.as_mut().poll(cx).is_ready() {
            let waited = since.elapsed();
            let is_short = self.answers.are_many() && waited >= STALL_GRACE;
            if is_short || waited >= self.patience.left() {
                let text = "the peer does not take its answer";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)));
            }
            self.look_again(Instant::now());
        }
        Poll::Pending
    }

    /// Looks again at a peer that is waited for, before patience ends where memory runs short.
    fn look_again(&mut self, now: Instant) {
        let pause = self.patience.left().min(STALL_GRACE);
        self.timer.as_mut().reset(now + pause);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.blocked_since.is_some() {
            // What the peer did not take is given up, not kept by the kernel.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.blocked_since.is_some() {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let bytes = buffer.filled().len() - before;
        if read.is_ready() && bytes > 0 {
            self.activity.moved(bytes);
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        // So that the head of the next answer waits until this one was taken.
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
