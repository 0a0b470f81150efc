//! Every bound on what peers can make a server hold or do, and the limiters that enforce them.

use commonware_cryptography::ed25519::PublicKey;
use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::DashMapStateStore,
};
use std::{net::IpAddr, num::NonZeroU32, time::Duration};

/// Requests of one connection that are worked on at once; more wait in the connection.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 64;
/// Answers of the whole server that are being read and proved at once: their memory is this many
/// times the response bound.
pub const RESPONSES_AT_ONCE_MAX: usize = 16;
/// Streams (follow and watch) of one connection.
pub const STREAMS_MAX: usize = 4;
/// Most bytes of credit that one stream may have.
pub const STREAM_CREDIT_MAX: u64 = 64 * 1024 * 1024;
/// Handshakes a second from one address.
pub const HANDSHAKES_PER_SECOND: NonZeroU32 = NonZeroU32::new(50).expect("not zero");
/// Handshakes that one address may begin at once.
pub const HANDSHAKES_BURST: NonZeroU32 = NonZeroU32::new(256).expect("not zero");
/// When a refused peer should come back.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Keys and addresses whose limits are remembered; idle ones are forgotten beyond it.
pub const LIMITER_ENTRIES_MAX: usize = 16_384;

type Keyed<K> = RateLimiter<K, DashMapStateStore<K>, DefaultClock>;

/// The limiters of a server.
pub struct Quotas {
    handshakes: Keyed<IpAddr>,
    requests: Keyed<PublicKey>,
    bytes: Option<Keyed<PublicKey>>,
    clock: DefaultClock,
}

/// Bytes are counted in steps of this, since a limiter counts in 32 bits.
const BYTES_STEP: u64 = 1024;

impl Quotas {
    /// Limiters for `requests` and `bytes` a second per key.
    pub fn new(requests: u32, bytes: Option<u64>) -> Self {
        let positive = |n: u64| {
            NonZeroU32::new(u32::try_from(n).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN)
        };
        let handshakes = Quota::per_second(HANDSHAKES_PER_SECOND).allow_burst(HANDSHAKES_BURST);
        Self {
            handshakes: RateLimiter::dashmap(handshakes),
            requests: RateLimiter::dashmap(Quota::per_second(positive(u64::from(requests)))),
            bytes: bytes.map(|bytes| {
                RateLimiter::dashmap(Quota::per_second(positive(bytes.div_ceil(BYTES_STEP))))
            }),
            clock: DefaultClock::default(),
        }
    }

    /// Whether `address` may begin a handshake.
    pub fn admit_handshake(&self, address: IpAddr) -> bool {
        if self.handshakes.len() > LIMITER_ENTRIES_MAX {
            self.handshakes.retain_recent();
        }
        self.handshakes.check_key(&address).is_ok()
    }

    /// How long `key` has to wait for its next request; zero if it need not.
    pub fn request_delay(&self, key: &PublicKey) -> Duration {
        if self.requests.len() > LIMITER_ENTRIES_MAX {
            self.requests.retain_recent();
        }
        match self.requests.check_key(key) {
            Ok(()) => Duration::ZERO,
            Err(until) => until.wait_time_from(self.clock.now()),
        }
    }

    /// How long to wait before `bytes` may be sent to `key`.
    pub fn bytes_delay(&self, key: &PublicKey, bytes: usize) -> Duration {
        let Some(limiter) = &self.bytes else { return Duration::ZERO };
        let steps = u32::try_from((bytes as u64).div_ceil(BYTES_STEP)).unwrap_or(u32::MAX);
        let Some(steps) = NonZeroU32::new(steps) else { return Duration::ZERO };
        match limiter.check_key_n(key, steps) {
            Ok(Ok(())) => Duration::ZERO,
            Ok(Err(until)) => until.wait_time_from(self.clock.now()),
            // More than a second's allowance at once: it has to wait for a full one.
            Err(_) => Duration::from_secs(1),
        }
    }
}
