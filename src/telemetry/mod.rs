//! Logs and the text forms of metrics.

pub mod logs;
pub mod metrics;
