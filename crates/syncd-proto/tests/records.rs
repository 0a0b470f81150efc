//! What records say of each other, and what decoders refuse although it is well-formed.
#![allow(missing_docs, clippy::unwrap_used)]

use bytes::Bytes;
use commonware_codec::{DecodeExt as _, Encode as _};
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use syncd_proto::{
    checkpoint::{Checkpoint, SignedCheckpoint},
    commit::{Base, Commit, IdempotencyEntry},
    database::{EXECUTION_VERSION, Kind, State},
    record::CommitMetadata,
    types::{Change, Digest, Family, HashKind},
};

fn key() -> PrivateKey {
    PrivateKey::from_seed(7)
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        database: Digest([1; 32]),
        family: Family::Current,
        hash: HashKind::Sha256,
        sequence: 8,
        floor: 3,
        size: 10,
        root: Digest([2; 32]),
        operations_root: Digest([3; 32]),
        committed_at_ms: 1_700_000_000_000,
        signed_at_ms: 1_700_000_000_001,
    }
}

#[test]
fn a_commit_leads_to_the_state_that_it_is_signed_for() {
    let state =
        State { size: 20, floor: 12, root: Digest([4; 32]), operations_root: Digest([5; 32]) };
    let metadata = CommitMetadata { sequence: 9, committed_at_ms: 1_700_000_000_500 };
    let changes = vec![Change::Delete { key: b"k".to_vec() }];
    let idempotency = vec![IdempotencyEntry { key: b"once".to_vec(), body: Digest([6; 32]) }];
    let commit = Commit::following(
        checkpoint(),
        state,
        metadata,
        changes.clone(),
        idempotency.clone(),
        1_700_000_000_600,
        &key(),
    );
    let expected = Checkpoint {
        sequence: 9,
        floor: 12,
        size: 20,
        root: Digest([4; 32]),
        operations_root: Digest([5; 32]),
        committed_at_ms: 1_700_000_000_500,
        signed_at_ms: 1_700_000_000_600,
        ..checkpoint()
    };
    assert_eq!(commit.checkpoint, expected.sign(&key()));
    assert!(commit.checkpoint.signature_is_valid());
    assert_eq!(commit.base, Base { size: 10, root: Digest([2; 32]) });
    assert_eq!((commit.changes.clone(), commit.idempotency.clone()), (changes, idempotency));
    assert_eq!(commit.execution, EXECUTION_VERSION);
    assert_eq!((commit.sequence(), commit.metadata(), commit.state()), (9, metadata, state));
    assert_eq!(commit.kind(), Kind { family: Family::Current, hash: HashKind::Sha256 });
    assert_eq!(Commit::decode(commit.encode()).unwrap(), commit);
}

#[test]
fn a_commit_follows_one_state_only() {
    let previous = checkpoint().sign(&key());
    let state =
        State { size: 20, floor: 12, root: Digest([4; 32]), operations_root: Digest([5; 32]) };
    let metadata = CommitMetadata { sequence: 9, committed_at_ms: 1 };
    let commit =
        Commit::following(checkpoint(), state, metadata, Vec::new(), Vec::new(), 2, &key());
    assert!(commit.follows(&previous));
    let other = |change: fn(&mut Checkpoint)| {
        let mut other = checkpoint();
        change(&mut other);
        other.sign(&key())
    };
    for (what, other) in [
        ("sequence", other(|of| of.sequence = 7)),
        ("sequence", other(|of| of.sequence = 9)),
        ("size", other(|of| of.size = 11)),
        ("root", other(|of| of.root = Digest([9; 32]))),
        ("database", other(|of| of.database = Digest([9; 32]))),
    ] {
        assert!(!commit.follows(&other), "another {what}");
    }
    let base = Commit::base_record(previous.clone(), EXECUTION_VERSION);
    assert_eq!((base.sequence(), base.base.size, base.base.root), (8, 10, Digest([2; 32])));
    assert!(!base.follows(&previous));
}

/// A floor lies below its size, and a size is one that the tree can have.
#[test]
fn checkpoints_that_no_database_has_are_refused() {
    let decoded = |floor, size| {
        let signed = Checkpoint { floor, size, ..checkpoint() }.sign(&key());
        SignedCheckpoint::decode(signed.encode()).is_ok()
    };
    assert!(decoded(0, 1) && decoded(9, 10) && decoded(0, 1 << 62));
    assert!(!decoded(0, 0) && !decoded(10, 10) && !decoded(11, 10) && !decoded(0, (1 << 62) + 1));
}

#[test]
fn a_checkpoint_is_shown_field_by_field() {
    let signed = checkpoint().sign(&key());
    let json = signed.to_json();
    for (name, value) in [
        ("database", "01".repeat(32)),
        ("family", "current".into()),
        ("hash", "sha256".into()),
        ("root", "02".repeat(32)),
        ("operations_root", "03".repeat(32)),
        ("publisher", hex::encode(key().public_key())),
        ("encoded", hex::encode(signed.encode())),
    ] {
        assert_eq!(json[name], value, "{name}");
    }
    for (name, value) in [
        ("sequence", 8),
        ("floor", 3),
        ("size", 10),
        ("committed_at", 1_700_000_000_000u64),
        ("signed_at", 1_700_000_000_001),
    ] {
        assert_eq!(json[name], value, "{name}");
    }
    let encoded = json["encoded"].as_str().unwrap();
    assert_eq!(SignedCheckpoint::from_hex(encoded).as_ref(), Ok(&signed));
    assert!(SignedCheckpoint::from_hex("xyz").is_err());
    assert!(SignedCheckpoint::from_hex(&encoded[2..]).is_err());
    assert!(SignedCheckpoint::decode(Bytes::new()).is_err());
}

#[test]
fn one_state_signed_twice_is_one_state() {
    let later = Checkpoint { signed_at_ms: 5, ..checkpoint() };
    assert!(checkpoint().same_state(&later));
    for other in [
        Checkpoint { sequence: 9, ..checkpoint() },
        Checkpoint { root: Digest([9; 32]), ..checkpoint() },
        Checkpoint { committed_at_ms: 9, ..checkpoint() },
    ] {
        assert!(!checkpoint().same_state(&other));
    }
}
