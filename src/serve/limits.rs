//! Every bound on what peers can make a server hold or do, and the limiters that enforce them.

use crate::wire::{COMMIT_RECORD_BYTES_MAX, RESPONSE_BYTES_MAX};
use commonware_cryptography::ed25519::PublicKey;
use commonware_utils::sync::Mutex;
use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::DashMapStateStore,
};
use std::{
    collections::HashMap,
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
pub const TOTAL_BYTES_MAX: usize = 128 * 1024 * 1024;
/// A peer that takes nothing of what waits for it for so long is disconnected. With answers of
/// 1 MiB this asks for 35 KiB/s.
pub const SLOW_READER_AFTER: Duration = Duration::from_secs(30);
/// The same, while three quarters of [`TOTAL_BYTES_MAX`] are in use.
pub const SLOW_READER_AFTER_UNDER_PRESSURE: Duration = Duration::from_secs(1);
/// Streams (follow and watch) of one connection.
pub const STREAMS_MAX: usize = 4;
/// Most bytes of credit that one stream may have.
pub const STREAM_CREDIT_MAX: i64 = 64 * 1024 * 1024;
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

/// The bounds that an operator sets, lowered to what descriptors allow.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most handshakes at once.
    pub handshakes: usize,
    /// Most handshakes at once from one address.
    pub handshakes_per_address: usize,
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

impl Limits {
    /// Lowers what needs descriptors. One address keeps the part of the whole that it has at the defaults.
    pub fn lower(&mut self, sessions: usize, handshakes: usize) {
        for (all, of_address, max) in [
            (&mut self.connections, &mut self.connections_per_address, sessions),
            (&mut self.handshakes, &mut self.handshakes_per_address, handshakes),
        ] {
            if max < *all {
                *all = max;
                *of_address = (*of_address).min(max.div_ceil(4));
            }
        }
    }
}

type Keyed<K> = RateLimiter<K, DashMapStateStore<K>, DefaultClock>;

/// The limiters of a server.
pub struct Quotas {
    handshakes: Keyed<IpAddr>,
    requests: Keyed<PublicKey>,
    bytes: Option<Allowances>,
    clock: DefaultClock,
}

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
            bytes: limits.bytes_per_second.map(Allowances::new),
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

    /// Takes `bytes` from the allowance of `key` before an answer is made that may be so long;
    /// [`Self::refund`] gives back what it did not need. Else how long to wait; nothing is held
    /// meanwhile.
    pub fn take_bytes(&self, key: &PublicKey, bytes: usize, now: Duration) -> Result<(), Duration> {
        self.bytes.as_ref().map_or(Ok(()), |allowances| allowances.take(key, bytes, now))
    }

    /// Gives back bytes that were taken and not sent.
    pub fn refund(&self, key: &PublicKey, bytes: usize) {
        if let Some(allowances) = &self.bytes {
            allowances.refund(key, bytes);
        }
    }
}

/// Bytes that each key may still be sent. An answer may cost more than there is left, and even
/// more than the allowance of a second: what is owed is waited for before the next one.
struct Allowances {
    per_second: f64,
    keys: Mutex<HashMap<PublicKey, Allowance>>,
}

/// What one key has left.
struct Allowance {
    bytes: f64,
    at: Duration,
}

impl Allowances {
    fn new(per_second: u64) -> Self {
        Self { per_second: per_second.max(1) as f64, keys: Mutex::default() }
    }

    /// As [`Quotas::take_bytes`]; `now` is a monotonic time.
    fn take(&self, key: &PublicKey, bytes: usize, now: Duration) -> Result<(), Duration> {
        let mut keys = self.keys.lock();
        if keys.len() > LIMITER_ENTRIES_MAX {
            keys.retain(|_, allowance| self.left(allowance, now) < self.per_second);
        }
        let full = Allowance { bytes: self.per_second, at: now };
        let allowance = keys.entry(key.clone()).or_insert(full);
        let left = self.left(allowance, now);
        if left <= 0.0 {
            // At least a millisecond, so that rounding cannot make a caller spin; and no longer than
            // it may take until another answer gives back what it did not need.
            let wait = (1.0 - left) / self.per_second;
            return Err(Duration::from_secs_f64(wait.clamp(0.001, 0.25)));
        }
        *allowance = Allowance { bytes: left - bytes as f64, at: now };
        Ok(())
    }

    fn left(&self, allowance: &Allowance, now: Duration) -> f64 {
        let elapsed = now.saturating_sub(allowance.at).as_secs_f64();
        (allowance.bytes + elapsed * self.per_second).min(self.per_second)
    }

    fn refund(&self, key: &PublicKey, bytes: usize) {
        if let Some(allowance) = self.keys.lock().get_mut(key) {
            allowance.bytes += bytes as f64;
        }
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
            handshakes: 1,
            handshakes_per_address: 1,
            connections: 1,
            connections_per_address: 1,
            handshakes_per_second: 2,
            requests_per_second: 1,
            bytes_per_second,
        })
    }

    /// An answer larger than a second's allowance is sent, and waited for afterwards.
    #[test]
    fn what_is_owed_is_waited_for() {
        let quotas = quotas(Some(1_000_000));
        let [key, other] = [1, 2].map(|seed| PrivateKey::from_seed(seed).public_key());
        let at = Duration::from_secs;
        assert_eq!(quotas.take_bytes(&key, 6_000_000, at(10)), Ok(()));
        let wait = quotas.take_bytes(&key, 1, at(10)).unwrap_err();
        assert!(!wait.is_zero() && wait < at(1), "{wait:?}");
        assert!(quotas.take_bytes(&key, 1, at(14)).is_err());
        assert_eq!(quotas.take_bytes(&other, 1, at(10)), Ok(()));
        // Most of it was not needed.
        quotas.refund(&key, 5_500_000);
        assert_eq!(quotas.take_bytes(&key, 1000, at(10)), Ok(()));
        // No more than a second's allowance is saved up.
        assert_eq!(quotas.take_bytes(&key, 1_500_000, at(1000)), Ok(()));
        assert!(quotas.take_bytes(&key, 1, at(1000)).is_err());
        assert_eq!(quotas.take_bytes(&key, 1, at(1001)), Ok(()));
    }

    #[test]
    fn idle_keys_are_forgotten() {
        let quotas = quotas(Some(1_000));
        let now = Duration::from_secs(5);
        for seed in 0..LIMITER_ENTRIES_MAX as u64 + 10 {
            let key = PrivateKey::from_seed(seed).public_key();
            let _ = quotas.take_bytes(&key, 10, now);
        }
        let key = PrivateKey::from_seed(1).public_key();
        let _ = quotas.take_bytes(&key, 10, now * 2);
        assert_eq!(quotas.bytes.unwrap().keys.lock().len(), 1);
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
