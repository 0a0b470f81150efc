//! What a process tells of itself: logs, traces, and the text forms of metrics.

pub mod context;
#[cfg(feature = "daemon")]
mod json;
#[cfg(feature = "daemon")]
pub mod logs;
#[cfg(feature = "daemon")]
pub mod metrics;
#[cfg(feature = "daemon")]
pub mod process;
mod spans;
#[cfg(feature = "daemon")]
mod start;
pub mod storage;
#[cfg(feature = "daemon")]
pub mod traces;

#[cfg(feature = "daemon")]
pub use start::Telemetry;
