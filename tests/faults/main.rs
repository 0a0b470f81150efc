//! Faults of machines, clocks, disks, peers and callers, shown with real processes. Each module covers one kind.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

mod clocks;
mod flow;
mod forks;
mod machine;
mod requests;
mod storage;
