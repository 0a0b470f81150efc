//! The one bound that names what everything between the wire and the disk needs of a runtime, so
//! that the same code runs on `tokio` in production and on `deterministic` in simulation.

use commonware_runtime::{Clock, Metrics, Network, Resolver, Spawner, Storage, Supervisor};
use rand_core::CryptoRng;

/// A context of `commonware-runtime` with everything that a daemon uses.
pub trait Runtime:
    Storage + Clock + Metrics + Spawner + Network + Resolver + Supervisor + CryptoRng + Send
{
}

impl<T> Runtime for T where
    T: Storage + Clock + Metrics + Spawner + Network + Resolver + Supervisor + CryptoRng + Send
{
}
