//! Replicates an authenticated key-value database, verifiably and live.
pub mod api;
pub mod checkpoint;
pub mod commit_log;
pub mod database;
pub mod ledger;
pub mod link;
pub mod runtime;
pub mod wire;
pub mod serve;
pub mod replicate;
pub mod client;
pub mod server;
/// Version of the product.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
