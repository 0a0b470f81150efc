//! The tasks that a daemon lives by. Each of them ends with the daemon or never: a daemon without one of them would look
//! alive and do half of its work, so the end of any of them ends the process, with `/livez` failing until then.
//!
//! Tasks of one request, session or connection are not here: they belong to whoever they serve. A panic in any task ends
//! the process at once.

use std::fmt;

/// A task, and what is not done without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Of a server: executes, signs and logs writes, and signs again when nothing changes.
    Publisher,
    /// Of a server: accepts replicas, and hears from them what it has forgotten.
    Listener,
    /// Of a client: brings the replica forward.
    Loop,
    /// Of a client: syncs the database, trims the log, notices storage that is gone.
    Upkeep,
    /// Answers on the API's port.
    Api,
    /// Answers on the port of metrics and health.
    Metrics,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Publisher => "publisher",
            Self::Listener => "listener",
            Self::Loop => "loop",
            Self::Upkeep => "upkeep",
            Self::Api => "api",
            Self::Metrics => "metrics",
        })
    }
}
