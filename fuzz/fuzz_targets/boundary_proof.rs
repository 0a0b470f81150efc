//! Answers to boundary requests: proofs over nodes, of every family and hash.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use syncd::database::{
    Kind,
    types::{Digest, Family, HashKind},
};
use syncd_verify::{history_at, verify_boundary};

// The root is fixed: one that the input may choose can be made to fit the proof in it.
fuzz_target!(|input: (u8, u16, u16, &[u8])| {
    let (kind, size, start, body) = input;
    let family = [Family::Any, Family::Immutable, Family::Current, Family::Keyless]
        [usize::from(kind >> 1) % 4];
    let hash = if kind & 1 == 0 { HashKind::Sha256 } else { HashKind::Blake3 };
    let kind = Kind { family, hash };
    let (size, start) = (u64::from(size), u64::from(start));
    let (root, body) = (Digest([7; 32]), Bytes::copy_from_slice(body));
    let verified = verify_boundary(kind, root, size, start, body.clone());
    assert!(verified.is_err(), "a proof of that root");
    let _ = history_at(kind, root, size, start, body);
});
