//! `syncd` replicates an authenticated key-value database, verifiably and live.
//!
//! # The flow
//!
//! ```text
//!  writers ──HTTP──▶ api ─▶ publisher ─▶ sign ─▶ commit log ──fsync──▶ database ─▶ acknowledge
//!                                                   │
//!                                     serve: sessions, follow streams, operations + proofs
//!                                                   │  link: mutual authentication, encryption
//!                                                   ▼
//!  readers ◀──HTTP── api ◀─ database ◀─ apply ◀─ log ◀─ execute again, compare the root
//!                                                   ▲
//!                              (too far behind: state sync into a new generation)
//! ```
//!
//! # Who trusts whom
//!
//! A replica trusts the publisher key and the database identity of its configuration, nothing
//! else: not the server that answers, not the network, not another replica's disk. Everything is
//! checked against a [signed checkpoint](checkpoint) before it is kept.
//!
//! # Invariants
//!
//! - Nothing is acknowledged, sent or served before its [commit](commit_log::Commit) is synced.
//! - Nothing is applied before its root equals the signed one.
//! - Sequence and size only go forward; time never orders states.
//! - A frame is never read or written by a future that may be dropped half way; a database is
//!   never mutated by one.
//! - Everything that a peer can grow has a bound with a name.
//!
//! # Layers
//!
//! Imports point downward: `server | client → serve, replicate → link`, and below this crate
//! `syncd-store` (ledger, commit log, database), `syncd-verify` (proofs, evidence) and `syncd-proto`
//! (checkpoints, commits, messages). Server and client never import each other. Everything between
//! the wire and the disk is generic over [`runtime::Runtime`], so that tests run it on a simulated
//! clock, disk and network.

#![deny(clippy::print_stdout, clippy::print_stderr)]

#[cfg(feature = "daemon")]
pub mod admin;
#[cfg(feature = "daemon")]
pub mod api;
pub mod client;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod control;
#[cfg(feature = "daemon")]
pub mod ctl;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod descriptors;
pub mod directory;
pub mod documents;
#[cfg(feature = "daemon")]
pub mod exit;
#[cfg(feature = "daemon")]
pub mod http;
pub mod keys;
#[cfg(feature = "daemon")]
pub mod lifecycle;
pub mod link;
pub mod reads;
mod replica;
pub mod replicate;
#[cfg(feature = "daemon")]
pub mod serve;
#[cfg(feature = "daemon")]
pub mod server;
#[cfg(feature = "daemon")]
pub mod stdio;
#[cfg(feature = "daemon")]
pub mod supervisor;
#[cfg(feature = "daemon")]
pub mod tasks;
pub mod telemetry;

pub use replica::{Builder, Ended, OpenError, Read, Replica, Server, States};
pub use syncd_proto::{checkpoint, wire};
pub use syncd_store::{
    checkpoints, commit_log, damage, database, ledger, rotations, runtime, storage_record, watch,
};
pub use syncd_verify as verify;
pub use verify::Trust;

/// Version of the product.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
