//! Serving replicas: listener, sessions, follow streams, limits.
//!
//! Works on a [`Ledger`], not on a publisher: whatever has a verified state and its log can serve
//! it on.
//!
//! Peers are strangers: a key is only a claim until the handshake ends, so addresses are limited
//! before it and keys after it. Whatever a peer can make grow is bounded in [`limits`].

pub mod limits;
mod listener;
mod metrics;
mod session;

pub use listener::{Handle, spawn};
pub use metrics::{DURATION_BUCKETS, Metrics};

use crate::{checkpoint::SignedCheckpoint, ledger::Ledger, runtime::Runtime};
use arc_swap::ArcSwap;
use commonware_cryptography::ed25519::{PrivateKey, PublicKey};
use std::{collections::HashSet, sync::Arc, time::Duration};

/// Which client keys may connect; `None` lets everybody.
pub type Authorized = Arc<ArcSwap<Option<HashSet<PublicKey>>>>;

/// Told of a checkpoint that our own key signed and our ledger does not know.
pub type Amnesia = Arc<dyn Fn(SignedCheckpoint) + Send + Sync>;

/// How to serve.
#[derive(Clone)]
pub struct Config {
    /// Transport key.
    pub identity: PrivateKey,
    /// Who may connect.
    pub authorized: Authorized,
    /// Most connections at once, handshakes included.
    pub connections_max: usize,
    /// Most requests a second from one key.
    pub requests_per_second: u32,
    /// Most bytes a second to one key; `None` is unlimited.
    pub bytes_per_second: Option<u64>,
    /// How often the publisher signs again.
    pub heartbeat_interval: Duration,
    /// The key whose signatures show that this server forgot, and whom to tell.
    pub publisher: Option<(PublicKey, Amnesia)>,
}

/// What all sessions share.
pub(crate) struct Shared<E: Runtime> {
    pub(crate) config: Config,
    pub(crate) ledger: Arc<Ledger<E>>,
    pub(crate) metrics: Metrics,
    pub(crate) quotas: limits::Quotas,
    pub(crate) serving: tokio::sync::Semaphore,
    pub(crate) draining: tokio::sync::watch::Receiver<bool>,
}
