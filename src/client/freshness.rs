//! How fresh the newest signature is, although any clock may be wrong.
//!
//! The age of a signature is the longer of two: what its own time says, compared with the wall clock,
//! and the time since it arrived here, by the monotonic clock. So neither a clock that stepped nor
//! a server that went silent looks fresh. A signature that lies in the future is no sign of life:
//! whoever kept it could show it again when its time has come. Nor is one that was seen before.

use crate::{
    checkpoint::{Checkpoint, unix_ms},
    runtime::Moment,
};
use std::{collections::BTreeSet, time::Duration};

/// Times of signatures that are remembered, to know them again. Beyond it the earliest are
/// forgotten: their own time says that they are old.
const SEEN_MAX: usize = 1024;

/// The signature that says most that the publisher is there.
#[derive(Clone, Copy, Debug)]
struct Good {
    signed_at_ms: u64,
    arrived: Duration,
    /// Whether it came from a server, rather than from this replica's own storage.
    is_heard: bool,
}

/// What signatures say of how long ago the publisher was there.
#[derive(Debug)]
pub struct Freshness {
    skew: Duration,
    began: Moment,
    good: Option<Good>,
    seen: BTreeSet<u64>,
}

impl Freshness {
    /// Begins `now`; a signature counts as future if it is more than `skew` ahead.
    pub const fn new(skew: Duration, now: Moment) -> Self {
        Self { skew, began: now, good: None, seen: BTreeSet::new() }
    }

    /// When it began.
    pub const fn began(&self) -> Moment {
        self.began
    }

    /// How far `checkpoint` was signed in the future, if that is more than the tolerated skew.
    pub fn ahead(&self, checkpoint: &Checkpoint, now: Moment) -> Option<Duration> {
        let ahead = checkpoint.signed_at_ms.saturating_sub(unix_ms(now.wall));
        Some(Duration::from_millis(ahead)).filter(|ahead| *ahead > self.skew)
    }

    /// Takes a verified signature that just arrived.
    pub fn note(&mut self, checkpoint: &Checkpoint, now: Moment) {
        self.take(checkpoint, now, true);
    }

    /// Takes a signature that was kept over a restart. When it arrived is not known; it may have been a future one then.
    pub fn recall(&mut self, checkpoint: &Checkpoint, now: Moment) {
        self.take(checkpoint, now, false);
    }

    /// Whether a signature that was no future one has arrived since the start.
    pub fn is_heard(&self) -> bool {
        self.good.is_some_and(|good| good.is_heard)
    }

    fn take(&mut self, checkpoint: &Checkpoint, now: Moment, is_heard: bool) {
        let is_future = self.ahead(checkpoint, now).is_some();
        if !self.seen.insert(checkpoint.signed_at_ms) {
            return;
        }
        if self.seen.len() > SEEN_MAX {
            self.seen.pop_first();
        }
        let says = checkpoint.age(now.wall);
        if !is_future && self.age(now).is_none_or(|age| says <= age) {
            let signed_at_ms = checkpoint.signed_at_ms;
            self.good = Some(Good { signed_at_ms, arrived: now.monotonic, is_heard });
        }
    }

    /// Age of the newest signature that was no future one; `None` if there was none.
    pub fn age(&self, now: Moment) -> Option<Duration> {
        let good = self.good?;
        let says = Duration::from_millis(unix_ms(now.wall).saturating_sub(good.signed_at_ms));
        Some(says.max(self.silence(now)))
    }

    /// Time since that signature arrived, or since the start if there was none.
    pub fn silence(&self, now: Moment) -> Duration {
        now.monotonic.saturating_sub(self.good.map_or(self.began.monotonic, |good| good.arrived))
    }

    /// Whether `offered`, another signature of the state of `known`, takes its place: a later one
    /// that is no future one, or an earlier one while the known one is.
    pub fn prefers(&self, offered: &Checkpoint, known: &Checkpoint, now: Moment) -> bool {
        let (offered_ms, known_ms) = (offered.signed_at_ms, known.signed_at_ms);
        if self.ahead(known, now).is_some() {
            offered_ms < known_ms
        } else {
            offered_ms > known_ms && self.ahead(offered, now).is_none()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::database::types::{Digest, Family, HashKind};
    use std::time::SystemTime;

    const HOUR: u64 = 3600;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The moment `monotonic`, with a wall clock that is `ahead` of the truth.
    fn moment(monotonic: u64, ahead: i64) -> Moment {
        let wall = (1_000_000 + monotonic).checked_add_signed(ahead).unwrap();
        Moment { wall: SystemTime::UNIX_EPOCH + at(wall), monotonic: at(monotonic) }
    }

    /// Signed at the moment `monotonic` by a clock that is `ahead` of the truth.
    fn signed(monotonic: u64, ahead: i64) -> Checkpoint {
        let root = Digest([1; 32]);
        Checkpoint {
            database: root,
            family: Family::Any,
            hash: HashKind::Blake3,
            sequence: 1,
            floor: 0,
            size: 2,
            root,
            operations_root: root,
            committed_at_ms: 0,
            signed_at_ms: unix_ms(moment(monotonic, ahead).wall),
        }
    }

    fn freshness() -> Freshness {
        Freshness::new(at(10), moment(0, 0))
    }

    #[test]
    fn a_silent_server_ages_whatever_the_clocks_do() {
        let mut fresh = freshness();
        assert_eq!((fresh.age(moment(5, 0)), fresh.silence(moment(5, 0))), (None, at(5)));
        fresh.note(&signed(10, 0), moment(10, 0));
        assert_eq!(fresh.age(moment(12, 0)), Some(at(2)));
        // The replica's clock is set back, and then ahead.
        assert_eq!(fresh.age(moment(70, -600)), Some(at(60)));
        assert_eq!(fresh.age(moment(70, 600)), Some(at(660)));
    }

    #[test]
    fn a_future_signature_is_no_sign_of_life_and_does_not_end_one() {
        let mut fresh = freshness();
        fresh.note(&signed(10, 0), moment(10, 0));
        fresh.note(&signed(11, HOUR as i64), moment(11, 0));
        assert_eq!(fresh.age(moment(12, 0)), Some(at(2)));
        assert_eq!(fresh.age(moment(81, 0)), Some(at(71)));
        // Shown again when its time has come, it was seen before.
        let later = moment(11 + HOUR, 0);
        fresh.note(&signed(11, HOUR as i64), later);
        assert_eq!(fresh.age(later), Some(at(1 + HOUR)));
    }

    #[test]
    fn what_was_seen_is_no_sign_of_life() {
        let mut fresh = freshness();
        for n in 0..2 * SEEN_MAX as u64 {
            fresh.note(&signed(n, 0), moment(n, 0));
        }
        assert_eq!(fresh.seen.len(), SEEN_MAX);
        let end = 2 * SEEN_MAX as u64 - 1;
        let later = moment(end + 100, -100);
        fresh.note(&signed(end, 0), later);
        assert_eq!(fresh.age(later), Some(at(100)));
    }

    #[test]
    fn what_was_kept_over_a_restart_is_no_sign_of_life() {
        let mut fresh = freshness();
        // It was a future signature when it arrived, before the restart.
        fresh.recall(&signed(0, 8), moment(1, 0));
        assert_eq!((fresh.age(moment(5, 0)), fresh.is_heard()), (Some(at(4)), false));
        fresh.note(&signed(0, 8), moment(5, 0));
        assert!(!fresh.is_heard());
        fresh.note(&signed(6, 0), moment(6, 0));
        assert!(fresh.is_heard());
    }

    #[test]
    fn two_clocks_set_back_together_stay_fresh() {
        let mut fresh = freshness();
        fresh.note(&signed(10, 0), moment(10, 0));
        fresh.note(&signed(16, -600), moment(16, -600));
        assert_eq!(fresh.age(moment(17, -600)), Some(at(1)));
        // The publisher's alone: its signatures say that they are old.
        let mut fresh = freshness();
        fresh.note(&signed(10, 0), moment(10, 0));
        fresh.note(&signed(16, -600), moment(16, 0));
        assert_eq!(fresh.age(moment(17, 0)), Some(at(7)));
    }

    #[test]
    fn a_right_signature_takes_the_place_of_a_future_one() {
        let fresh = freshness();
        let now = moment(20, 0);
        for (offered, known, expected) in [
            (signed(16, 0), signed(11, HOUR as i64), true),
            (signed(16, 0), signed(11, 0), true),
            (signed(11, 0), signed(16, 0), false),
            (signed(16, 0), signed(16, 0), false),
            (signed(16, HOUR as i64), signed(11, 0), false),
            (signed(16, 2 * HOUR as i64), signed(11, HOUR as i64), false),
        ] {
            assert_eq!(fresh.prefers(&offered, &known, now), expected, "{offered:?} {known:?}");
        }
    }
}
