//! What is read from a ledger, without a word of HTTP: values, pages, exports, proofs.

mod entries;
mod export;
mod proofs;

pub use entries::read_entries;
pub use export::{
    EXPORT_HOLD_MAX, EXPORT_OPERATIONS_PER_SECOND_MIN, Export, hold_max, stream_export,
};
pub use proofs::{Subject, prove};
pub use syncd_proto::database::{Entry, Name};

use crate::database::types::{DatabaseId, Root};
use std::time::Duration;

/// The state that an answer speaks of; becomes the `Syncd-*` headers.
#[derive(Clone, Debug)]
pub struct View {
    /// Identity of the database.
    pub database: DatabaseId,
    /// Number of operations.
    pub size: u64,
    /// Root at that size.
    pub root: Root,
    /// Seconds the state may be behind the publisher's (0 on a server).
    pub lag_seconds: f64,
}

/// What a database lacks to answer a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// Its family has no such operation.
    Family,
    /// Its family cannot prove this.
    Proof,
    /// It is compact: it holds no values.
    Compact,
}

/// Why a read was not answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// A client that has not verified any state yet: 503 `no_verified_state`.
    #[error("no state has been verified yet")]
    NoVerifiedState,
    /// The database cannot answer this question.
    #[error("{message}")]
    Unsupported {
        /// What it lacks.
        why: Unsupported,
        /// Why, in a sentence.
        message: String,
    },
    /// There is no such thing in the verified state: 404.
    #[error("{0}")]
    NotFound(String),
    /// What was asked for is no longer held: 410.
    #[error("{0}")]
    Pruned(String),
    /// A limit was reached: 429 with `Retry-After`.
    #[error("{message}")]
    Busy {
        /// What is busy.
        message: String,
        /// When to come back.
        retry_after: Duration,
    },
    /// The store failed: 500.
    #[error("{0}")]
    Internal(String),
}

impl ReadError {
    /// What a compact database answers to reads.
    pub fn compact() -> Self {
        let message = "this database is compact: it holds no values, only what verifies the next";
        Self::Unsupported { why: Unsupported::Compact, message: message.into() }
    }
}

/// Values of a log, with their locations.
#[derive(Clone, Debug)]
pub struct Page {
    /// The state that they were read from.
    pub view: View,
    /// The values.
    pub entries: Vec<Entry>,
    /// Where to go on; the state's size at its end.
    pub next: u64,
}
