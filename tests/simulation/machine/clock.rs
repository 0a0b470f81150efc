//! Clocks that are off, step, and go at different rates.

use super::Machine;
use commonware_runtime::Clock;
use commonware_utils::NZU64;
use std::{
    num::NonZeroU64,
    sync::Mutex,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use syncd::runtime::{Monotonic, Runtime};

/// How a machine's clock differs from true time.
#[derive(Debug)]
pub struct Skew(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Milliseconds that the wall clock is ahead.
    ahead_ms: i64,
    /// Parts in a million that it goes too fast.
    drift_ppm: i64,
}

/// True time at the start of a run: no wall clock is before 1970, whatever it does.
pub const START: Duration = Duration::from_secs(1_700_000_000);

impl Skew {
    pub fn new(ahead_ms: i64, drift_ppm: i64) -> Self {
        Self(Mutex::new(State { ahead_ms, drift_ppm }))
    }

    /// Steps the wall clock.
    pub fn step(&self, by_ms: i64) {
        self.0.lock().unwrap().ahead_ms += by_ms;
    }

    fn scale(&self, elapsed: Duration, sign: i64) -> Duration {
        let ppm = sign * self.0.lock().unwrap().drift_ppm;
        let micros = i128::try_from(elapsed.as_micros()).unwrap_or(i128::MAX);
        let scaled = micros + micros * i128::from(ppm) / 1_000_000;
        Duration::from_micros(u64::try_from(scaled).unwrap_or(0))
    }
}

impl Machine {
    /// True time since the start.
    fn elapsed(&self) -> Duration {
        self.inner.current().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

impl governor::clock::Clock for Machine {
    type Instant = SystemTime;

    fn now(&self) -> SystemTime {
        self.current()
    }
}

impl governor::clock::ReasonablyRealtime for Machine {}

impl Clock for Machine {
    fn current(&self) -> SystemTime {
        let wall = UNIX_EPOCH + START + self.life.skew.scale(self.elapsed(), 1);
        let ahead = self.life.skew.0.lock().unwrap().ahead_ms;
        let by = Duration::from_millis(ahead.unsigned_abs());
        if ahead < 0 { wall - by } else { wall + by }
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.inner.sleep(self.life.skew.scale(duration, -1))
    }

    fn sleep_until(
        &self,
        deadline: SystemTime,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.sleep(deadline.duration_since(self.current()).unwrap_or_default())
    }
}

impl Monotonic for Machine {
    fn monotonic(&self) -> Duration {
        self.life.skew.scale(self.elapsed(), 1)
    }
}

impl Runtime for Machine {
    const LOG_SEGMENT_RECORDS: NonZeroU64 = NZU64!(16);
}
