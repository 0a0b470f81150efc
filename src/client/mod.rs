//! The replica's daemon: connects, verifies, follows, answers reads.

pub mod adopt;
#[cfg(feature = "daemon")]
pub mod backend;
pub mod connection;
pub mod core;
pub mod disk;
pub mod evidence;
mod following;
pub mod freshness;
mod judge;
pub mod known;
pub mod metrics;
pub mod phase;
pub mod pin;
pub mod reader;
mod rebuild;
#[cfg(feature = "daemon")]
mod run;
pub mod state;
pub mod sync_loop;

#[cfg(feature = "daemon")]
pub use run::{adopt_database, main};
