//! stub
pub mod backend;
pub mod core;
pub mod generator;
pub mod idempotency;
pub mod metrics;
pub mod publisher;
pub mod state;
