//! The one bound that names what everything between the wire and the disk needs of a runtime, so
//! that the same code runs on `tokio` in production and on `deterministic` in simulation.
//!
//! There are two clocks. `Clock::current` is the wall clock: it can step in either direction and
//! is only for what is written down or shown. Every interval, deadline and age is measured by
//! [`Monotonic`], which no administrator and no time server can move.

use commonware_runtime::{
    Clock, Metrics, Network, Resolver, Spawner, Storage, Supervisor, deterministic, tokio,
};
use commonware_utils::NZU64;
use rand_core::CryptoRng;
use std::{
    num::NonZeroU64,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

/// A clock that only goes forward, at the pace of `Clock::sleep`.
pub trait Monotonic {
    /// Time since a fixed point of this process. Time in which the machine was suspended need not
    /// count.
    fn monotonic(&self) -> Duration;
}

impl Monotonic for tokio::Context {
    fn monotonic(&self) -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }
}

impl Monotonic for deterministic::Context {
    fn monotonic(&self) -> Duration {
        self.current().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}

/// A context of `commonware-runtime` with everything that a daemon uses.
pub trait Runtime:
    Storage + Clock + Monotonic + Metrics + Spawner + Network + Resolver + Supervisor + CryptoRng + Send
{
    /// Records in one segment of the commit log. Trimming drops whole segments, so the log may exceed its bound by one.
    /// A storage directory keeps to one number; a simulation takes a smaller one to trim more often.
    const LOG_SEGMENT_RECORDS: NonZeroU64 = NZU64!(128);

    /// What both clocks say now.
    fn moment(&self) -> Moment {
        loop {
            let (before, wall) = (self.monotonic(), self.current());
            let monotonic = self.monotonic();
            // Else this thread was not run between the two, and they do not belong together.
            if monotonic.saturating_sub(before) < STEP_MIN / 10 {
                return Moment { wall, monotonic };
            }
        }
    }
}

impl Runtime for tokio::Context {}
impl Runtime for deterministic::Context {}

/// What both clocks say.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The wall clock.
    pub wall: SystemTime,
    /// [`Monotonic`].
    pub monotonic: Duration,
}

/// A difference between the two clocks below this is no step: clocks are slewed, and tasks wait.
pub const STEP_MIN: Duration = Duration::from_secs(1);

/// What the wall clock did between two looks, beyond the time that really passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It went back.
    Back(Duration),
    /// It went ahead, or the machine was suspended.
    Ahead(Duration),
}

impl Step {
    /// Words for [`Self::direction`].
    pub const DIRECTIONS: [&str; 2] = ["back", "ahead"];

    /// The word for logs and metrics.
    pub const fn direction(self) -> &'static str {
        match self {
            Self::Back(_) => "back",
            Self::Ahead(_) => "ahead",
        }
    }

    /// How far.
    pub const fn by(self) -> Duration {
        match self {
            Self::Back(by) | Self::Ahead(by) => by,
        }
    }
}

/// Notices steps of the wall clock.
#[derive(Debug)]
pub struct StepWatch {
    last: Moment,
}

impl StepWatch {
    /// Begins with what both clocks say.
    pub const fn new(now: Moment) -> Self {
        Self { last: now }
    }

    /// The step since the last look, if there was one.
    pub fn look(&mut self, now: Moment) -> Option<Step> {
        let expected = self.last.wall + now.monotonic.saturating_sub(self.last.monotonic);
        self.last = now;
        match now.wall.duration_since(expected) {
            Ok(ahead) => (ahead >= STEP_MIN).then_some(Step::Ahead(ahead)),
            Err(back) => (back.duration() >= STEP_MIN).then_some(Step::Back(back.duration())),
        }
    }
}

/// Watches whether the storage stays where it was when it was opened. Asked before anything is acknowledged or adopted,
/// because a file that is held open can be written wherever it was moved to, and when it was removed.
pub trait Guard: Send + Sync {
    /// Why the storage is not where it was, if it is not.
    fn check(&self) -> Result<(), String>;

    /// A guard that also watches those of `partitions` that exist now.
    fn with(&self, partitions: &[String]) -> StorageGuard;
}

/// A [`Guard`] that is shared.
pub type StorageGuard = Arc<dyn Guard>;

/// Says whether so many bytes can be written to the storage; if not, why.
pub type StorageRoom = Arc<dyn Fn(u64) -> Result<(), String> + Send + Sync>;

/// The room of a storage that cannot be full.
pub fn unlimited() -> StorageRoom {
    Arc::new(|_| Ok(()))
}

/// The guard of a storage that cannot be moved.
pub fn unguarded() -> StorageGuard {
    struct Unguarded;
    impl Guard for Unguarded {
        fn check(&self) -> Result<(), String> {
            Ok(())
        }

        fn with(&self, _: &[String]) -> StorageGuard {
            unguarded()
        }
    }
    Arc::new(Unguarded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_from_the_passing_of_time() {
        let at = Duration::from_secs;
        let moment = |wall, monotonic| Moment {
            wall: SystemTime::UNIX_EPOCH + at(wall),
            monotonic: at(monotonic),
        };
        let mut watch = StepWatch::new(moment(1000, 5));
        assert_eq!(watch.look(moment(1060, 65)), None);
        assert_eq!(watch.look(moment(4661, 66)), Some(Step::Ahead(at(3600))));
        assert_eq!(watch.look(moment(4662, 67)), None);
        assert_eq!(watch.look(moment(1063, 68)), Some(Step::Back(at(3600))));
        assert_eq!(watch.look(moment(1064, 69)), None);
    }
}
