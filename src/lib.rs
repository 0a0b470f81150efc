//! Replicates an authenticated key-value database, verifiably and live.
pub mod api;
pub mod checkpoint;
pub mod commit_log;
pub mod database;
pub mod runtime;
