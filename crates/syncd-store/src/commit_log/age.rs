//! How old records are, for the retention: by the time that really passed, never by a clock that
//! can step.
//!
//! A record that was appended in this process is as old as the time since then. One that was found
//! at the start is at least as old as the process. Its own time says more, but that is only
//! believed after [`CLOCK_TRUSTED_AFTER`], and then by the lowest age that the wall clock gave it
//! all along: so a clock that is ahead for a while expires nothing, and one that is wrong at the
//! start has that long to be corrected.

use std::time::Duration;

/// How long the wall clock is watched before it may age records of an earlier process.
pub const CLOCK_TRUSTED_AFTER: Duration = Duration::from_secs(10 * 60);

/// When the newest record of a segment was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    /// In this process, at this time of the monotonic clock.
    Here(Duration),
    /// Before this process, at this time of the wall clock by its own account, in milliseconds.
    Before(u64),
}

/// Both clocks, and what they said since the log was opened.
#[derive(Debug)]
pub(super) struct Ages {
    opened: Duration,
    /// Lowest wall time at the opening, in milliseconds, that a look since then amounts to.
    opened_ms: u64,
}

impl Ages {
    pub(super) const fn new(monotonic: Duration, wall_ms: u64) -> Self {
        Self { opened: monotonic, opened_ms: wall_ms }
    }

    /// Takes what the clocks say now.
    pub(super) fn look(&mut self, monotonic: Duration, wall_ms: u64) {
        let elapsed = monotonic.saturating_sub(self.opened);
        self.opened_ms = self.opened_ms.min(wall_ms.saturating_sub(millis(elapsed)));
    }

    /// Age of a record at `monotonic`.
    pub(super) fn of(&self, made: Made, monotonic: Duration) -> Duration {
        match made {
            Made::Here(at) => monotonic.saturating_sub(at),
            Made::Before(ms) => {
                let elapsed = monotonic.saturating_sub(self.opened);
                if elapsed < CLOCK_TRUSTED_AFTER {
                    return elapsed;
                }
                elapsed.saturating_add(Duration::from_millis(self.opened_ms.saturating_sub(ms)))
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    /// The true time when the log was opened.
    const NOW_MS: u64 = 1_700_000_000_000;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn what_was_made_here_ages_by_the_monotonic_clock_alone() {
        let mut ages = Ages::new(seconds(10), NOW_MS);
        ages.look(seconds(11), NOW_MS + millis(1000 * HOUR));
        ages.look(seconds(12), 0);
        assert_eq!(ages.of(Made::Here(seconds(11)), seconds(15)), seconds(4));
        assert_eq!(ages.of(Made::Here(seconds(20)), seconds(15)), Duration::ZERO);
    }

    #[test]
    fn a_clock_that_is_ahead_at_the_start_has_time_to_be_corrected() {
        let made = Made::Before(NOW_MS - millis(seconds(60)));
        let mut ages = Ages::new(seconds(0), NOW_MS + millis(2 * HOUR));
        assert_eq!(ages.of(made, seconds(30)), seconds(30));
        // Corrected, and wrong once more.
        ages.look(seconds(40), NOW_MS + 40_000);
        ages.look(seconds(50), NOW_MS + millis(2 * HOUR));
        let later = CLOCK_TRUSTED_AFTER + seconds(5);
        assert_eq!(ages.of(made, later), later + seconds(60));
    }

    #[test]
    fn a_right_clock_is_believed_in_the_end() {
        let made = Made::Before(NOW_MS - millis(HOUR));
        let ages = Ages::new(seconds(0), NOW_MS);
        assert!(ages.of(made, CLOCK_TRUSTED_AFTER - seconds(1)) < CLOCK_TRUSTED_AFTER);
        assert!(ages.of(made, CLOCK_TRUSTED_AFTER) > HOUR);
        // A record from the future is as old as the process.
        let made = Made::Before(NOW_MS + millis(HOUR));
        assert_eq!(ages.of(made, CLOCK_TRUSTED_AFTER), CLOCK_TRUSTED_AFTER);
    }
}
