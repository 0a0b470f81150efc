//! The documents whose structures belong to crates below, or are written a line at a time. A test
//! compares each with what is sent.
#![allow(dead_code, reason = "they describe, and are never made")]

use crate::documents::schema;
use serde::Deserialize;
use utoipa::ToSchema;

/// A line of a batch or of an export.
///
/// A line of a batch has a key and either a value or `"delete": true`; in `keyless` a value only. A
/// line of an export has a key and a value; in `keyless` a value and its location. Bytes that are
/// not UTF-8 are written as base64, in the members that end with `_b64`; a line has one of the two.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// The key as text.
    #[schema(nullable = false, min_length = 1, max_length = 1024)]
    key: Option<String>,
    /// The key in base64 with padding.
    #[schema(
        nullable = false,
        min_length = 1,
        content_encoding = "base64",
        pattern = "^[A-Za-z0-9+/]+={0,2}$"
    )]
    key_b64: Option<String>,
    /// The value as text.
    #[schema(nullable = false)]
    value: Option<String>,
    /// The value in base64 with padding.
    #[schema(nullable = false, content_encoding = "base64", pattern = "^[A-Za-z0-9+/]*={0,2}$")]
    value_b64: Option<String>,
    /// Deletes the key (batches only).
    #[schema(nullable = false)]
    delete: Option<bool>,
    /// Where the value is in the log (`keyless`; ignored in a batch).
    #[schema(nullable = false)]
    location: Option<u64>,
}

/// A page of a log of values.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Entries {
    /// The values, each with its location.
    entries: Vec<Record>,
    /// Where to go on; equal to `Syncd-Size` at the end of the log.
    next: u64,
}

/// A signed state.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Checkpoint {
    /// Identity of the database.
    #[schema(value_type = schema::Digest)]
    database: String,
    /// Kind of database.
    #[schema(value_type = schema::Family)]
    family: String,
    /// Hash of the database.
    #[schema(value_type = schema::Hash)]
    hash: String,
    /// Sequence of the commit.
    sequence: u64,
    /// First operation that a new replica needs.
    floor: u64,
    /// Number of operations.
    size: u64,
    /// Root of the state.
    #[schema(value_type = schema::Digest)]
    root: String,
    /// Root over the operations; another than `root` in `current` only.
    #[schema(value_type = schema::Digest)]
    operations_root: String,
    /// When it was committed, milliseconds since 1970.
    committed_at: u64,
    /// When it was signed, milliseconds since 1970.
    signed_at: u64,
    /// The Ed25519 key that signed it.
    #[schema(value_type = schema::Digest)]
    publisher: String,
    /// The signature.
    #[schema(pattern = "^[0-9a-f]{128}$")]
    signature: String,
    /// All of it in its encoded form, in hexadecimal digits; docs/PROOFS.md describes the bytes.
    #[schema(pattern = "^[0-9a-f]{470}$")]
    encoded: String,
}

/// A proof file. `syncctl verify` and the crate `syncd-verify` check it; docs/PROOFS.md describes
/// the bytes.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ProofFile {
    /// Version of the format.
    #[schema(minimum = 1, maximum = 1)]
    format: u8,
    /// What the file says.
    statement: Statement,
    /// The key in base64 (`value`, `absent`).
    #[schema(nullable = false, content_encoding = "base64")]
    key_b64: Option<String>,
    /// The value in base64 (`value`).
    #[schema(nullable = false, content_encoding = "base64")]
    value_b64: Option<String>,
    /// The location (`operation`).
    #[schema(nullable = false)]
    location: Option<u64>,
    /// The signed state, in hexadecimal digits.
    #[schema(pattern = "^[0-9a-f]{470}$")]
    checkpoint: String,
    /// How the publisher's keys followed each other, in hexadecimal digits.
    #[schema(pattern = "^([0-9a-f]{2})+$")]
    rotations: String,
    /// The proof in base64.
    #[schema(content_encoding = "base64")]
    proof_b64: String,
    /// SHA-256 of everything else. It finds damage and protects nothing.
    #[schema(value_type = schema::Digest)]
    checksum: String,
}

/// The key holds the value; the key holds nothing; the operation is at the location.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Statement {
    Value,
    Absent,
    Operation,
}
