//! Serving replicas: listener, sessions, follow streams, limits.
//!
//! Works on a [`Ledger`], not on a publisher: whatever has a verified state and its log can serve
//! it on.
//!
//! Peers are strangers: a key is only a claim until the handshake ends, so addresses are limited
//! before it and keys after it. Whatever a peer can make grow is bounded in [`limits`].

mod budget;
mod greeting;
pub mod limits;
mod listener;
mod metrics;
mod session;
mod streams;

pub use listener::{Handle, spawn};
pub use metrics::Metrics;

use crate::watch;
use crate::{
    checkpoint::{Rotations, SignedCheckpoint},
    database::types::Mode,
    ledger::Ledger,
    runtime::Runtime,
};
use commonware_cryptography::ed25519::{PrivateKey, PublicKey};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// Which client keys may connect; `None` lets everybody. Sessions notice when it changes.
pub type Authorized = Arc<watch::Sender<Option<HashSet<PublicKey>>>>;

/// Told of a checkpoint that our own key signed and our ledger does not know.
pub type Amnesia = Arc<dyn Fn(SignedCheckpoint) + Send + Sync>;

/// How to serve.
#[derive(Clone)]
pub struct Config {
    /// Transport key.
    pub identity: PrivateKey,
    /// Who may connect.
    pub authorized: Authorized,
    /// Which replicas are served: of either mode, or compact ones only.
    pub mode: Mode,
    /// What an operator allows.
    pub limits: limits::Limits,
    /// How often the publisher signs again.
    pub heartbeat_interval: Duration,
    /// The key whose signatures show that this server forgot, and whom to tell.
    pub publisher: Option<(PublicKey, Amnesia)>,
    /// How the publisher's keys followed each other.
    pub rotations: Rotations,
}

/// What all sessions share.
pub(crate) struct Shared<E: Runtime> {
    pub(crate) config: Config,
    pub(crate) ledger: Arc<Ledger<E>>,
    pub(crate) metrics: Metrics,
    pub(crate) quotas: limits::Quotas,
    pub(crate) budget: Arc<budget::Budget>,
    pub(crate) serving: Semaphore,
    pub(crate) draining: watch::Receiver<bool>,
}

impl<E: Runtime> Shared<E> {
    /// Whether `key` may connect.
    pub(crate) fn authorizes(&self, key: &PublicKey) -> bool {
        self.config.authorized.borrow().as_ref().is_none_or(|keys| keys.contains(key))
    }
}
