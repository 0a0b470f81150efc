//! What a connection is doing, as its port sees it.

use super::answers::Room;
use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// How long a peer in the middle of something may stand still before it makes room for others.
pub const STALL_GRACE: Duration = Duration::from_secs(1);

/// How long a peer may take over a head, a body or an answer before a full port asks who is slowest.
pub const SLOW_GRACE: Duration = Duration::from_secs(2);

/// How long a connection without a request has its place for sure: until it was looked at.
pub const IDLE_GRACE: Duration = Duration::from_millis(250);

/// Why a connection was closed from this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Nothing was asked over it, or not completely, and its place was needed.
    Idle,
    /// Its peer does not take its answer.
    SlowReader,
    /// Its peer does not send the body that it announced, and its place was needed.
    SlowBody,
    /// It had its place for longer than requests on that port take, and its place was needed.
    Long,
    /// Too many answers wait for their readers. The connection stays.
    Answers,
}

impl Reason {
    pub(super) const ALL: [Self; 5] =
        [Self::Idle, Self::SlowReader, Self::SlowBody, Self::Long, Self::Answers];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::SlowReader => "slow_reader",
            Self::SlowBody => "slow_body",
            Self::Long => "long",
            Self::Answers => "answers",
        }
    }
}

/// What one connection is doing. Written by its task, read by its port.
#[derive(Debug)]
pub(super) struct Activity {
    started: Instant,
    /// Milliseconds from `started` to when bytes last went either way.
    moved_ms: AtomicU64,
    /// Milliseconds from `started` to when the head, body or answer began that goes over it now.
    part_ms: AtomicU64,
    /// Bytes that went either way since then.
    part_bytes: AtomicU64,
    is_in_service: AtomicBool,
    awaits_body: AtomicBool,
    is_blocked: AtomicBool,
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            moved_ms: AtomicU64::new(0),
            part_ms: AtomicU64::new(0),
            part_bytes: AtomicU64::new(0),
            is_in_service: AtomicBool::new(false),
            awaits_body: AtomicBool::new(false),
            is_blocked: AtomicBool::new(false),
        })
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.age().as_millis()).unwrap_or(u64::MAX)
    }

    /// Bytes went either way.
    pub(super) fn moved(&self, bytes: usize) {
        self.moved_ms.store(self.now_ms(), Ordering::Relaxed);
        self.part_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Another head, body or answer begins.
    fn begin_part(&self) {
        self.part_ms.store(self.now_ms(), Ordering::Relaxed);
        self.part_bytes.store(0, Ordering::Relaxed);
    }

    /// Whether an answer waits for the peer.
    pub(super) fn set_blocked(&self, blocked: bool) {
        self.is_blocked.store(blocked, Ordering::Relaxed);
    }

    /// How long nothing has moved.
    pub(super) fn quiet(&self) -> Duration {
        let moved = Duration::from_millis(self.moved_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(moved)
    }

    /// How long the connection has been there.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// What its peer is waited for, if it is.
    fn waits(&self) -> Option<Reason> {
        if self.is_blocked.load(Ordering::Relaxed) {
            Some(Reason::SlowReader)
        } else if self.awaits_body.load(Ordering::Relaxed) {
            Some(Reason::SlowBody)
        } else if self.is_in_service.load(Ordering::Relaxed) {
            None
        } else {
            Some(Reason::Idle)
        }
    }

    /// Why the connection may be closed where its place is needed, if it may.
    pub(super) fn expendable(&self) -> Option<Reason> {
        let reason = self.waits()?;
        let grace = if reason == Reason::Idle { IDLE_GRACE } else { STALL_GRACE };
        (self.quiet() >= grace).then_some(reason)
    }

    /// With how many bytes a second its peer sends or takes what it is waited for, if that takes
    /// longer than [`SLOW_GRACE`].
    pub(super) fn slowness(&self) -> Option<(u64, Reason)> {
        let reason = self.waits()?;
        let ms = self.now_ms().saturating_sub(self.part_ms.load(Ordering::Relaxed));
        let is_long = u128::from(ms) >= SLOW_GRACE.as_millis();
        let bytes = self.part_bytes.load(Ordering::Relaxed);
        is_long.then(|| (bytes.saturating_mul(1000) / ms, reason))
    }

    /// A request is worked on until the returned value is dropped.
    pub(super) fn serve(self: &Arc<Self>) -> InService {
        self.is_in_service.store(true, Ordering::Relaxed);
        self.begin_part();
        InService(self.clone())
    }
}

/// A request that is worked on.
#[derive(Debug)]
pub(super) struct InService(Arc<Activity>);

impl Drop for InService {
    fn drop(&mut self) {
        self.0.awaits_body.store(false, Ordering::Relaxed);
        self.0.is_in_service.store(false, Ordering::Relaxed);
        self.0.begin_part();
    }
}

/// The body of a request; notes when its peer is waited for.
pub(super) struct Received {
    pub(super) body: Incoming,
    pub(super) activity: Arc<Activity>,
}

impl Drop for Received {
    fn drop(&mut self) {
        self.activity.awaits_body.store(false, Ordering::Relaxed);
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.activity.awaits_body.store(frame.is_pending(), Ordering::Relaxed);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes of an answer that are handed over at a time, so that what waits is counted.
const PIECE_BYTES: usize = 16 * 1024;

/// The body of an answer: the request is in service, and its memory counted, until it was handed
/// over.
pub(super) struct Sent {
    body: Body,
    /// What was taken from `body` and not handed over.
    rest: Bytes,
    _service: InService,
    _room: Room,
}

impl Sent {
    pub(super) fn new(body: Body, service: InService, room: Room) -> Self {
        service.0.begin_part();
        Self { body, rest: Bytes::new(), _service: service, _room: room }
    }
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let length = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        if let Some(upper) = body.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(body.lower().saturating_add(rest));
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_waits_for_its_peer_makes_room() {
        let mut activity = Activity::new();
        assert_eq!(activity.expendable(), None, "a new one is looked at first");
        // As if it had come a while ago.
        if let Some(activity) = Arc::get_mut(&mut activity) {
            activity.started -= STALL_GRACE * 2;
        }
        assert_eq!(activity.expendable(), Some(Reason::Idle));
        let service = activity.serve();
        assert_eq!(activity.expendable(), None, "a request is worked on");
        activity.set_blocked(true);
        assert_eq!(activity.expendable(), Some(Reason::SlowReader));
        activity.moved(1);
        assert_eq!(activity.expendable(), None, "its peer takes something");
        activity.set_blocked(false);
        drop(service);
        assert_eq!(activity.expendable(), None, "an answer has just gone");
    }

    #[test]
    fn who_goes_on_slowly_is_known_by_the_rate() {
        let mut activity = Activity::new();
        let later = |activity: &mut Arc<Activity>, by: Duration| {
            if let Some(activity) = Arc::get_mut(activity) {
                activity.started -= by;
            }
        };
        activity.moved(1000);
        assert_eq!(activity.slowness(), None, "it has just begun");
        later(&mut activity, SLOW_GRACE * 2);
        activity.moved(1000);
        assert_eq!(activity.expendable(), None, "something moves");
        let (rate, reason) = activity.slowness().unwrap_or((0, Reason::Long));
        assert_eq!(reason, Reason::Idle);
        assert!((400..=500).contains(&rate), "{rate} bytes a second");
        drop(activity.serve());
        assert_eq!(activity.slowness(), None, "a request was answered");
    }
}
