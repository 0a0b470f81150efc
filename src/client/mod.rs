//! stub
pub mod backend;
pub mod connection;
pub mod core;
pub mod known;
pub mod metrics;
pub mod replica;
pub mod sync_loop;
