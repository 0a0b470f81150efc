//! Verifies what a syncd publisher signed, and what was proved of it: for auditors and applications that
//! have a file and no network, no storage, and no trust in who gave them the file.
//!
//! - [`ProofFile`]: a key has a value, is absent, or an operation stands at a location, in one signed state.
//! - [`Evidence`]: a publisher signed two histories.
//! - [`verify_key`], [`verify_operation`], [`verify_boundary`]: the proofs inside, against a root that
//!   the caller took from a checkpoint whose signature it verified.
//!
//! The operations and proofs are those of `commonware-storage`'s `qmdb`. They are decoded here, over
//! that library's Merkle structure alone, so that nothing of its runtime is needed and everything builds
//! for `wasm32-unknown-unknown`; vectors made by the library pin the two together.
//!
//! No input makes anything here panic, and memory is bounded by the size of the input.
//!
//! ```
//! use syncd_verify::{Expect, ProofFile, Trust};
//!
//! fn audit(text: &[u8], publisher: &str, database: &str) -> Result<String, Box<dyn std::error::Error>> {
//!     let trust = Trust::from_hex(&[publisher], database)?;
//!     let proved = ProofFile::from_json(text)?.verify(&trust, &Expect::default())?;
//!     Ok(proved.to_string())
//! }
//! # assert!(audit(b"{}", &"00".repeat(32), &"00".repeat(32)).is_err());
//! ```

mod active;
mod evidence;
mod merkle;
mod operation;
mod proof;

pub use active::verify_key;
pub use evidence::{Evidence, Unproved};
pub use merkle::{Invalid, history_at, verify_boundary, verify_operation};
pub use proof::{
    Error, Expect, FILE_BYTES_MAX, FORMAT_VERSION, ProofFile, Proved, Statement, Trust,
};
pub use syncd_proto as proto;
