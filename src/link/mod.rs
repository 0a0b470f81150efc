//! The encrypted channel between a replica and a server, cut into frames.
//!
//! Below is `commonware-stream`: SAKE proves both keys to each other, CUPS encrypts; versions are
//! fixed at V1 and never negotiated. Above are plain channels of frames.
//!
//! **Invariant:** a frame's read or write is never cancelled half way, because a cancelled one
//! destroys the channel: one task owns the reading side, one the writing side, and everybody else
//! talks to them through queues.

mod bounded;
mod client;
mod connector;
pub mod credit;
mod frames;

pub use bounded::Bounded;
pub use client::{Link, LinkError, Stream};
pub use connector::{ADDRESSES_MAX, Connected, Connector, HEAD_START, host_and_port};
pub use frames::{Frames, Outgoing, flush, spawn as spawn_frames};

use commonware_cryptography::{ChaCha20Poly1305, ed25519::PrivateKey};
use commonware_stream::{
    cups::{self, Cups},
    sake::{self, Sake},
    utils::{Timeout, TimeoutError},
};
use std::time::Duration;

/// How long a handshake may take, the first messages included.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a silent client says that it is there; well below [`IDLE_TIMEOUT`].
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a connection may be silent before it counts as dead.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(35);
/// Clock difference that a server tolerates in handshakes. Generous: completing a handshake needs
/// a fresh secret anyway, and the client, which is configured with what it tolerates, can then
/// name the difference instead of meeting a closed door.
pub const SERVER_SKEW: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a handshake failed.
pub type HandshakeError = TimeoutError<sake::Error>;
/// What runs handshakes here.
pub type Upgrader = Timeout<Cups<Sake<PrivateKey>, ChaCha20Poly1305>>;

/// An upgrader that proves `signer` and tolerates a clock difference of `skew`.
pub fn upgrader(signer: PrivateKey, skew: Duration) -> Upgrader {
    let sake =
        Sake { signer, synchrony_bound: skew, max_handshake_age: skew, version: sake::Version::V1 };
    Timeout::new(Cups::new(sake, cups::Version::V1), HANDSHAKE_TIMEOUT)
}
