//! Bringing a replica forward: over a connection, verified before anything is kept.
//!
//! Two ways lead there. [`follow`] executes each commit of the server's log on the open database
//! and compares roots; it proves that history was only appended to, since each commit names the
//! root it builds on. [`state_sync`] builds a new generation from operations and proofs; before
//! it replaces a replica, [`continuity`] proves that the new state contains the old one.

pub mod continuity;
pub mod follow;
mod source;
pub mod state_sync;

pub use source::{LinkSource, Progress, RETRY_PAUSE_MAX};
