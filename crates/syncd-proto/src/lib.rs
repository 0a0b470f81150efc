//! What servers, replicas and auditors say to each other, byte for byte: identifiers, signed
//! checkpoints, rotations of keys, commit records, wire messages. Pure: no I/O, no runtime, no clock.
//!
//! Everything here is read from peers who may be hostile: each decoder is bounded by a constant, and
//! decoding never verifies. What makes a state trustworthy is [`checkpoint::Policy`].

pub mod checkpoint;
pub mod commit;
pub mod database;
pub mod hash;
pub mod record;
pub mod trace;
pub mod types;
pub mod wire;
