//! What is on disk: the authenticated database behind one trait, the log of commits that it is the sum of, and the
//! small records beside them.
//!
//! Imports point downward: `ledger → commit_log, database → storage_record → runtime`. Everything is
//! generic over [`runtime::Runtime`], so that tests run it on a simulated clock and disk.
//!
//! # Invariants
//!
//! - Nothing is applied to the database before its commit is in the synced log.
//! - The database is never made durable ahead of the log.
//! - A record is written twice, and absence differs from "never written".

pub mod checkpoints;
pub mod commit_log;
pub mod damage;
pub mod database;
pub mod ledger;
pub mod rotations;
pub mod runtime;
pub mod storage_record;
pub mod watch;
