//! How long a peer is waited for.

use std::time::Duration;

/// Time that a peer may be waited for in all. What it moves gives time back, at the slowest rate
/// allowed: a peer at or above that rate is waited for without end, one that stands still or
/// trickles is not.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    max: Duration,
    left: Duration,
    bytes_per_second: u64,
}

impl Patience {
    /// Waits for `max` at once, and goes on as long as `bytes_per_second` move.
    pub const fn new(max: Duration, bytes_per_second: u64) -> Self {
        Self { max, left: max, bytes_per_second }
    }

    /// How long the peer may still be waited for.
    pub const fn left(&self) -> Duration {
        self.left
    }

    /// The peer was waited for.
    pub const fn waited(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }

    /// Bytes went to or came from the peer.
    pub fn moved(&mut self, bytes: usize) {
        let earned = bytes as f64 / self.bytes_per_second.max(1) as f64;
        let earned = Duration::try_from_secs_f64(earned).unwrap_or(self.max);
        self.left = self.left.saturating_add(earned).min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_runs_out_and_a_flow_does_not() {
        let second = Duration::from_secs(1);
        let mut slow = Patience::new(second * 10, 1000);
        let mut steady = slow;
        for _ in 0..9 {
            slow.waited(second);
            slow.moved(10);
            steady.waited(second);
            steady.moved(1000);
        }
        assert!(slow.left() < second * 2, "{slow:?}");
        assert_eq!(steady.left(), second * 10);
        slow.waited(second * 5);
        assert_eq!(slow.left(), Duration::ZERO);
        slow.moved(usize::MAX);
        assert_eq!(slow.left(), second * 10, "never more than at first");
    }
}
