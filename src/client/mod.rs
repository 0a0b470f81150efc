//! The replica's daemon: connects, verifies, follows, answers reads.

pub mod adopt;
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
mod rebuild;
pub mod replica;
mod run;
pub mod sync_loop;

pub use adopt::adopt_database;
pub use run::main;
