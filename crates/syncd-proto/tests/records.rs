//! What records say of each other, and what decoders refuse although it is well-formed.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

use bytes::Bytes;
use commonware_codec::{DecodeExt as _, Encode as _, FixedSize as _};
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use syncd_proto::{
    checkpoint::{
        Admission, Checkpoint, Parameters, Policy, Refusal, Rotation, Rotations, SignedCheckpoint,
        compare, rotation::ROTATIONS_MAX,
    },
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

/// An identity is a digest of everything that it is made of.
#[test]
fn an_identity_depends_on_each_of_its_parts() {
    let make = || Parameters::new([3; 32], key().public_key(), Family::Any, HashKind::Sha256);
    let encoded = make().encode();
    assert_eq!(encoded.len(), Parameters::SIZE);
    assert_eq!(Parameters::decode(encoded).unwrap(), make());
    let mut others: Vec<Parameters> = vec![make(); 8];
    others[0].random = [4; 32];
    others[1].genesis = PrivateKey::from_seed(8).public_key();
    others[2].family = Family::Current;
    others[3].hash = HashKind::Blake3;
    others[4].merkle += 1;
    others[5].codec += 1;
    others[6].layout += 1;
    others[7].epoch += 1;
    let mut seen = vec![make().identity().id];
    for parameters in others {
        assert_eq!(Parameters::decode(parameters.encode()).unwrap(), parameters);
        let id = parameters.identity().id;
        assert!(!seen.contains(&id));
        seen.push(id);
    }
    assert_eq!(seen[0].to_string(), IDENTITY);
}

const IDENTITY: &str = "be094414f74f63067ab49d08d77e5c153d546820607597a094710e089ac34cca";

fn keys() -> [PrivateKey; 4] {
    [1, 2, 3, 4].map(PrivateKey::from_seed)
}

fn policy(publishers: &[&PrivateKey]) -> Policy {
    Policy {
        publishers: publishers.iter().map(|key| key.public_key()).collect(),
        database: Digest([1; 32]),
        family: Family::Current,
        rotations: Rotations::default(),
    }
}

fn rotation(from: u64, retired: &PrivateKey, successor: &PrivateKey) -> Rotation {
    Rotation::new(Digest([1; 32]), from, retired, successor)
}

fn signed(sequence: u64, by: &PrivateKey) -> SignedCheckpoint {
    Checkpoint { sequence, ..checkpoint() }.sign(by)
}

/// What is kept is judged with the predecessors of the keys that are trusted now; what others show is not.
#[test]
fn storage_is_judged_with_the_predecessors_of_the_trusted_keys() {
    let [first, second, third, stranger] = keys();
    let chain = Rotations(vec![rotation(5, &first, &second), rotation(9, &second, &third)]);
    let now = policy(&[&third]);
    let of_storage = now.of_storage(&chain).unwrap();
    assert_eq!(of_storage.rotations, chain);
    for (sequence, by, of_peers, kept) in [
        (4, &first, false, true),
        (5, &first, false, false),
        (8, &second, false, true),
        (9, &second, false, false),
        (9, &third, true, true),
        (4, &stranger, false, false),
    ] {
        assert_eq!(now.verify(&signed(sequence, by)).is_ok(), of_peers, "peers, {sequence}");
        assert_eq!(of_storage.verify(&signed(sequence, by)).is_ok(), kept, "kept, {sequence}");
    }
    // A chain that leads elsewhere vouches for nobody.
    let elsewhere = policy(&[&stranger]).of_storage(&chain).unwrap();
    assert!(elsewhere.verify(&signed(4, &first)).is_err());
    assert_eq!(elsewhere.publishers, [stranger.public_key()]);
    // Nobody is named twice, and the policy's own chain does not count beside the one that is kept.
    let both = policy(&[&second, &first]);
    let learned = Policy { rotations: Rotations(vec![rotation(3, &first, &stranger)]), ..both };
    let kept = learned.of_storage(&Rotations(vec![rotation(5, &first, &second)])).unwrap();
    assert_eq!(kept.publishers, [second.public_key(), first.public_key()]);
    assert_eq!(kept.rotations.0.len(), 1);
}

#[test]
fn only_chains_that_both_keys_signed_are_learned() {
    let [first, second, third, _] = keys();
    let good = rotation(5, &first, &second);
    let mut bytes = good.encode().to_vec();
    assert_eq!(bytes.len(), Rotation::SIZE);
    for at in [Rotation::SIZE - 100, Rotation::SIZE - 1] {
        bytes[at] ^= 1;
        let forged = Rotation::decode(Bytes::from(bytes.clone())).unwrap();
        bytes[at] ^= 1;
        assert!(!forged.signatures_are_valid(), "one signature is not enough: byte {at}");
        let refused = policy(&[&first]).learn(&Rotations(vec![forged]));
        assert!(matches!(refused, Err(Refusal::BadRotation(_))), "{refused:?}");
    }
    bytes[0] = 2;
    assert!(Rotation::decode(Bytes::from(bytes)).is_err(), "another format");
    let mut learning = policy(&[&first]);
    assert_eq!(learning.learn(&Rotations(vec![good.clone()])), Ok(true));
    assert_eq!(learning.learn(&Rotations(vec![good.clone()])), Ok(false));
    let chain = Rotations(vec![good, rotation(9, &second, &third)]);
    assert_eq!(Rotations::decode(chain.encode()).unwrap(), chain);
    assert_eq!(learning.learn(&chain), Ok(true));
    let many = Rotations(vec![rotation(1, &first, &second); ROTATIONS_MAX + 1]);
    assert!(Rotations::decode(many.encode()).is_err(), "more than there may be");
}

#[test]
fn states_of_one_history_go_forward_together() {
    let known = checkpoint();
    let at = |sequence, size, floor| Checkpoint { sequence, size, floor, ..checkpoint() };
    assert_eq!(compare(&at(9, 12, 3), &known), Ok(Admission::Newer));
    assert_eq!(compare(&at(7, 9, 3), &known), Ok(Admission::Stale));
    assert!(compare(&at(9, 12, 2), &known).is_err(), "a floor never goes back");
    assert!(compare(&at(7, 9, 4), &known).is_err(), "a floor never went back");
    assert!(compare(&at(9, 10, 3), &known).is_err() && compare(&at(9, 9, 3), &known).is_err());
    assert!(compare(&at(7, 10, 3), &known).is_err() && compare(&at(7, 11, 3), &known).is_err());
    let resigned = Checkpoint { signed_at_ms: known.signed_at_ms + 1, ..checkpoint() };
    assert_eq!(compare(&resigned, &known), Ok(Admission::Resigned));
    assert_eq!(compare(&known, &resigned), Ok(Admission::Stale));
    assert!(compare(&Checkpoint { root: Digest([9; 32]), ..checkpoint() }, &known).is_err());
}

#[test]
fn a_refusal_says_whether_an_operator_has_to_act() {
    let [first, ..] = keys();
    let of = |change: fn(&mut Checkpoint)| {
        let mut other = checkpoint();
        change(&mut other);
        policy(&[&first]).verify(&other.sign(&first)).unwrap_err()
    };
    let database = of(|of| of.database = Digest([9; 32]));
    let family = of(|of| of.family = Family::Any);
    assert!(database.is_mismatch() && family.is_mismatch());
    let stranger = policy(&[&first]).verify(&signed(8, &key())).unwrap_err();
    assert!(!stranger.is_mismatch() && !Refusal::BadSignature.is_mismatch());
    for refusal in [database, family, stranger] {
        assert!(Refusal::REASONS.contains(&refusal.reason()));
    }
}
