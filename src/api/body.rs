//! Reading bodies: bounded in bytes and time, in memory that is counted as it is used.

use super::{
    drain::Drain,
    problem::{Code, Problem, busy},
};
use crate::{database::types::VALUE_LENGTH_MAX, http::Patience};
use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header},
};
use futures::StreamExt as _;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// How long a request's body may take to arrive.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a body may stand still.
pub(super) const BODY_STALL_MAX: Duration = Duration::from_secs(10);
/// The slowest that a body may come for longer than that, in bytes a second.
pub(super) const BODY_RATE_MIN: u64 = 4 * 1024;
/// How long a body may still take once the process drains.
pub(super) const BODY_DRAIN_MAX: Duration = Duration::from_secs(2);
/// Bytes of bodies that are held at once, beyond the first [`BODY_FREE_BYTES`] of each; more are
/// answered `busy`.
pub(super) const BODIES_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of each body that always find room, so that large bodies do not keep single values out.
/// Connections bound them.
pub(super) const BODY_FREE_BYTES: usize = VALUE_LENGTH_MAX;
/// Smallest piece of memory for a body.
const PIECE_MIN: usize = 4096;

/// The memory of all bodies.
#[derive(Clone)]
pub(super) struct Bodies(Arc<Semaphore>);

impl Default for Bodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BODIES_BYTES_MAX)))
    }
}

/// A body, and its part in what all bodies may hold.
pub(super) struct Held {
    pub(super) bytes: Vec<u8>,
    room: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Makes room for `more` bytes of a body of at most `max`. Memory is taken as bytes arrive,
    /// not as they are announced: an announcement costs its sender nothing.
    fn grow(&mut self, bodies: &Bodies, more: usize, max: usize) -> Result<(), Problem> {
        let (length, capacity) = (self.bytes.len(), self.bytes.capacity());
        let needed = length + more;
        if needed <= capacity {
            return Ok(());
        }
        let wanted = needed.max(capacity * 2).max(PIECE_MIN).min(max.max(needed));
        let beyond = |bytes: usize| bytes.saturating_sub(BODY_FREE_BYTES);
        let charge = beyond(wanted) - beyond(capacity);
        if charge > 0 {
            let charge = u32::try_from(charge).unwrap_or(u32::MAX);
            let room = bodies.0.clone().try_acquire_many_owned(charge);
            let room = room.map_err(|_| busy("too many large bodies at once"))?;
            match &mut self.room {
                Some(held) => held.merge(room),
                None => self.room = Some(room),
            }
        }
        self.bytes.reserve_exact(wanted - length);
        Ok(())
    }
}

/// Reads a body of at most `max` bytes.
pub(super) async fn read(
    bodies: &Bodies,
    drain: &Drain,
    headers: &HeaderMap,
    body: Body,
    max: usize,
) -> Result<Held, Problem> {
    let patience = Patience::new(BODY_STALL_MAX, BODY_RATE_MIN);
    read_with(patience, bodies, drain, headers, body, max).await
}

/// Reads a body from a peer that is waited for with `patience`.
async fn read_with(
    mut patience: Patience,
    bodies: &Bodies,
    drain: &Drain,
    headers: &HeaderMap,
    body: Body,
    max: usize,
) -> Result<Held, Problem> {
    let too_large = || Problem::too_large(format!("the body is larger than {max} bytes"));
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let announced: Option<usize> = announced.and_then(|value| value.parse().ok());
    if announced.is_some_and(|announced| announced > max) {
        return Err(too_large());
    }
    let capacity_max = announced.unwrap_or(max);
    let mut held = Held { bytes: Vec::new(), room: None };
    let mut pieces = body.into_data_stream();
    let (late, draining) = (tokio::time::sleep(BODY_TIMEOUT), drain.begun_for(BODY_DRAIN_MAX));
    tokio::pin!(late, draining);
    loop {
        let waiting = Instant::now();
        let piece: Option<Result<Bytes, axum::Error>> = tokio::select! {
            biased;
            piece = pieces.next() => piece,
            () = &mut draining => return Err(Problem::draining()),
            () = &mut late => {
                return Err(slow(format!("the body did not arrive within {BODY_TIMEOUT:?}")));
            }
            () = tokio::time::sleep(patience.left()) => return Err(slow(format!(
                "the body stood still for {BODY_STALL_MAX:?}, or came with less than {BODY_RATE_MIN} bytes a second"
            ))),
        };
        let Some(piece) = piece else { return Ok(held) };
        let piece = piece
            .map_err(|error| Problem::malformed(format!("the body cannot be read: {error}")))?;
        patience.waited(waiting.elapsed());
        patience.moved(piece.len());
        if held.bytes.len() + piece.len() > max {
            return Err(too_large());
        }
        held.grow(bodies, piece.len(), capacity_max)?;
        held.bytes.extend_from_slice(&piece);
    }
}

fn slow(detail: String) -> Problem {
    Problem::new(Code::BodyTimeout, detail)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use futures::stream;

    async fn read_all(bodies: &Bodies, body: Body, max: usize) -> Result<Held, Problem> {
        read(bodies, &Drain::never(), &HeaderMap::new(), body, max).await
    }

    #[tokio::test]
    async fn bodies_take_room_as_they_arrive_and_give_it_back() {
        let bodies = Bodies::default();
        let free = || bodies.0.available_permits();
        let body = |bytes: usize| {
            let pieces =
                (0..bytes / 1000).map(|_| Ok::<_, axum::Error>(Bytes::from(vec![7; 1000])));
            Body::from_stream(stream::iter(pieces.collect::<Vec<_>>()))
        };
        let small = read_all(&bodies, body(BODY_FREE_BYTES / 2), BODY_FREE_BYTES).await.unwrap();
        assert_eq!(free(), BODIES_BYTES_MAX, "small bodies take no room from large ones");
        let large = read_all(&bodies, body(3_000_000), 4_000_000).await.unwrap();
        assert_eq!((small.bytes.len(), large.bytes.len()), (32_000, 3_000_000));
        let taken = BODIES_BYTES_MAX - free();
        assert_eq!(taken, large.bytes.capacity() - BODY_FREE_BYTES);
        assert!(large.bytes.capacity() <= 4_000_000);
        assert!(read_all(&bodies, body(5_000_000), 4_000_000).await.is_err());
        assert_eq!(free(), BODIES_BYTES_MAX - taken, "a refused one keeps nothing");
        drop(large);
        assert_eq!(free(), BODIES_BYTES_MAX);
    }

    /// Four bytes each `pause`, `count` times.
    fn drops(pause: Duration, count: usize) -> Body {
        Body::from_stream(stream::unfold(0, move |sent| async move {
            tokio::time::sleep(pause).await;
            let piece = Ok::<_, axum::Error>(Bytes::from_static(b"drop"));
            (sent < count).then_some((piece, sent + 1))
        }))
    }

    #[tokio::test]
    async fn a_body_that_stands_still_or_trickles_is_cut() {
        let stall = Duration::from_millis(300);
        let still = Body::from_stream(stream::pending::<Result<Bytes, axum::Error>>());
        for (body, complete) in [
            (still, false),
            (drops(Duration::from_millis(100), 1000), false),
            (drops(Duration::from_millis(5), 100), true),
        ] {
            let (bodies, headers) = (Bodies::default(), HeaderMap::new());
            let started = Instant::now();
            // Four bytes in 100 ms are 40 a second; in 5 ms, whatever timers add, more than 100.
            let patience = Patience::new(stall, 100);
            let read =
                read_with(patience, &bodies, &Drain::never(), &headers, body, 1_000_000).await;
            assert_eq!(read.is_ok(), complete);
            assert!(complete || started.elapsed() < stall * 10, "{:?}", started.elapsed());
        }
    }
}
