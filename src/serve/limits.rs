//! Every bound on what peers can make a server hold or do, and the limiters that enforce them.

use crate::wire::{COMMIT_RECORD_BYTES_MAX, RESPONSE_BYTES_MAX};
use commonware_cryptography::ed25519::PublicKey;
use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::DashMapStateStore,
};
use std::{
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    time::Duration,
};

/// Requests of one connection that are worked on at once; more wait in the connection.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 64;
/// Answers of the whole server that are being read and proved at once.
pub const RESPONSES_AT_ONCE_MAX: usize = 16;
/// Bytes of answers that one connection may have unread.
pub const CONNECTION_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of answers that all connections may have unread together. Encryption holds up to as much
/// again while it is written.
pub const TOTAL_BYTES_MAX: usize = 256 * 1024 * 1024;
/// A peer that takes nothing of what waits for it for so long is disconnected. With answers of
/// 1 MiB this asks for 35 KiB/s.
pub const SLOW_READER_AFTER: Duration = Duration::from_secs(30);
/// The same, while three quarters of [`TOTAL_BYTES_MAX`] are in use.
pub const SLOW_READER_AFTER_UNDER_PRESSURE: Duration = Duration::from_secs(1);
/// Streams (follow and watch) of one connection.
pub const STREAMS_MAX: usize = 4;
/// Most bytes of credit that one stream may have.
pub const STREAM_CREDIT_MAX: u64 = 64 * 1024 * 1024;
/// Handshakes of the whole server that are going on at once.
pub const HANDSHAKES_AT_ONCE_MAX: usize = 512;
/// Handshakes of one address that are going on at once.
pub const HANDSHAKES_PER_ADDRESS_MAX: usize = 128;
/// Seconds' worth of handshakes that one address may begin at once.
const HANDSHAKES_BURST_SECONDS: u32 = 5;
/// When a refused peer should come back.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Keys and addresses whose limits are remembered; idle ones are forgotten beyond it.
pub const LIMITER_ENTRIES_MAX: usize = 16_384;

// One commit and one answer fit beside each other, so that neither waits for the other for ever.
const _: () = assert!(COMMIT_RECORD_BYTES_MAX + RESPONSE_BYTES_MAX < CONNECTION_BYTES_MAX);

/// The bounds that an operator sets.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most sessions at once.
    pub connections: usize,
    /// Most sessions at once from one address.
    pub connections_per_address: usize,
    /// Most handshakes a second from one address.
    pub handshakes_per_second: u32,
    /// Most requests a second from one key.
    pub requests_per_second: u32,
    /// Most bytes a second to one key; `None` is unlimited.
    pub bytes_per_second: Option<u64>,
}

/// What counts as one address: a network of IPv6 has as many as it likes.
pub fn address_group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

type Keyed<K> = RateLimiter<K, DashMapStateStore<K>, DefaultClock>;

/// The limiters of a server.
pub struct Quotas {
    handshakes: Keyed<IpAddr>,
    requests: Keyed<PublicKey>,
    /// With the allowance of a second, in steps.
    bytes: Option<(Keyed<PublicKey>, NonZeroU32)>,
    clock: DefaultClock,
}

/// Bytes are counted in steps of this, since a limiter counts in 32 bits.
const BYTES_STEP: u64 = 1024;

impl Quotas {
    /// The limiters for `limits`.
    pub fn new(limits: &Limits) -> Self {
        let positive = |n: u64| {
            NonZeroU32::new(u32::try_from(n).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN)
        };
        let rate = limits.handshakes_per_second;
        let burst = rate.saturating_mul(HANDSHAKES_BURST_SECONDS);
        let handshakes =
            Quota::per_second(positive(u64::from(rate))).allow_burst(positive(u64::from(burst)));
        let requests = Quota::per_second(positive(u64::from(limits.requests_per_second)));
        Self {
            handshakes: RateLimiter::dashmap(handshakes),
            requests: RateLimiter::dashmap(requests),
            bytes: limits.bytes_per_second.map(|bytes| {
                let steps = positive(bytes.div_ceil(BYTES_STEP));
                (RateLimiter::dashmap(Quota::per_second(steps)), steps)
            }),
            clock: DefaultClock::default(),
        }
    }

    /// Whether the [address group](address_group) may begin a handshake.
    pub fn admit_handshake(&self, group: IpAddr) -> bool {
        if self.handshakes.len() > LIMITER_ENTRIES_MAX {
            self.handshakes.retain_recent();
        }
        self.handshakes.check_key(&group).is_ok()
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

    /// What `bytes` to one key cost; see [`Self::pay`].
    pub fn price(&self, bytes: usize) -> u32 {
        u32::try_from((bytes as u64).div_ceil(BYTES_STEP)).unwrap_or(u32::MAX)
    }

    /// Pays for bytes to `key`, as much of `price` as there is allowance for; how long to wait
    /// before the rest can be paid, zero once all is.
    pub fn pay(&self, key: &PublicKey, price: &mut u32) -> Duration {
        let Some((limiter, burst)) = &self.bytes else { return Duration::ZERO };
        if limiter.len() > LIMITER_ENTRIES_MAX {
            limiter.retain_recent();
        }
        // An answer may cost more than the allowance of a second: it is paid for in parts.
        while let Some(part) = NonZeroU32::new((*price).min(burst.get())) {
            match limiter.check_key_n(key, part) {
                Ok(Ok(())) => *price -= part.get(),
                Ok(Err(until)) => return until.wait_time_from(self.clock.now()),
                Err(_) => return RETRY_AFTER,
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use commonware_cryptography::{Signer as _, ed25519::PrivateKey};

    #[test]
    fn a_network_of_ipv6_counts_as_one_address() {
        for (address, group) in [
            ("127.0.0.1", "127.0.0.1"),
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff::1", "2001:db8:1:2::"),
        ] {
            let found = address_group(address.parse().unwrap());
            assert_eq!(found, group.parse::<IpAddr>().unwrap());
        }
    }

    fn quotas(bytes_per_second: Option<u64>) -> Quotas {
        Quotas::new(&Limits {
            connections: 1,
            connections_per_address: 1,
            handshakes_per_second: 2,
            requests_per_second: 1,
            bytes_per_second,
        })
    }

    /// An answer larger than a second's allowance is sent in the end.
    #[test]
    fn large_answers_are_paid_for_in_parts() {
        let quotas = quotas(Some(1_000_000));
        let key = PrivateKey::from_seed(1).public_key();
        let mut price = quotas.price(1_250_000);
        let mut parts = 0;
        loop {
            let before = price;
            let delay = quotas.pay(&key, &mut price);
            parts += usize::from(price < before);
            if delay.is_zero() {
                break;
            }
            std::thread::sleep(delay);
        }
        assert_eq!((price, parts), (0, 2));
    }

    #[test]
    fn handshakes_of_one_address_are_limited() {
        let quotas = quotas(None);
        let admitted = |address: &str| {
            let address = address.parse().unwrap();
            (0..100).filter(|_| quotas.admit_handshake(address)).count()
        };
        assert_eq!(admitted("10.0.0.1"), 10);
        assert_eq!(admitted("10.0.0.2"), 10, "another address has its own");
    }
}
