//! The publisher's daemon: owns the database, takes writes, signs, serves.

pub mod backend;
pub mod core;
pub mod epoch;
pub mod generator;
pub mod idempotency;
mod metrics;
mod opening;
pub mod publisher;
pub mod rotate;
mod run;
pub mod state;

pub use epoch::{Discarded, Epoch, new_epoch};
pub use rotate::{Rotated, rotate_key};
pub use run::main;
