//! What a database proves verifies without it, and nothing else does.

use super::{
    BATCHES, Context, WRITES, changes, for_each_kind, key_of, metadata, publisher, run, value_of,
    write,
};
use bytes::Bytes;
use commonware_cryptography::{Hasher as _, Sha256};
use commonware_runtime::Supervisor as _;
use std::{
    num::NonZeroU64,
    sync::{Arc, Mutex},
};
use syncd::database::{
    self, Database, Error, Kind, OpenAt, Operation, Place,
    types::{Change, Digest, Family, HashKind, KEY_LENGTH_MAX, Mode, VALUE_LENGTH_MAX},
};
use syncd::verify::{verify_key, verify_operation};

/// Every way of flipping one bit of `bytes`, every prefix, and one byte more.
fn spoiled(bytes: &Bytes) -> impl Iterator<Item = Bytes> {
    let flips = (0..bytes.len() * 8).map(|bit| {
        let mut spoiled = bytes.to_vec();
        spoiled[bit / 8] ^= 1 << (bit % 8);
        Bytes::from(spoiled)
    });
    let prefixes = (0..bytes.len()).map(|length| bytes.slice(..length));
    let longer = std::iter::once([bytes.as_ref(), &[0]].concat().into());
    flips.chain(prefixes).chain(longer)
}

/// Bytes that are nothing, or nearly a proof; the same ones each time.
fn noise(proof: &Bytes) -> impl Iterator<Item = Bytes> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap()
    };
    (0..2000).map(move |round| {
        let mut bytes = match round % 2 {
            0 => proof.to_vec(),
            _ => vec![0; random() % 600],
        };
        let changed = if round % 2 == 0 { 1 + random() % 4 } else { bytes.len() };
        for _ in 0..changed {
            let at = random() % bytes.len().max(1);
            bytes[at] = random().to_le_bytes()[0];
        }
        bytes.into()
    })
}

#[test]
fn operations_are_proved_in_every_family() {
    for_each_kind(|context, kind| async move {
        let mut database = publisher(&context, kind, 4).await;
        let old = database.state().unwrap();
        write(&mut database, kind.family, 4).await;
        let new = database.state().unwrap();
        for state in [old, new] {
            let max = NonZeroU64::new(state.size).unwrap();
            let operations = database.operations(state.size, 0, max).await.unwrap();
            assert_eq!(operations.len() as u64, state.size);
            assert_eq!(operations[0], Operation::Commit(None));
            for (location, expected) in (0..).zip(&operations) {
                let proof = database.prove_operation(location, state.size).await.unwrap();
                let root = state.operations_root;
                let found = verify_operation(kind, root, state.size, location, proof);
                assert_eq!(found.as_ref(), Ok(expected));
            }
            let last = operations.last().unwrap();
            let sequence = if state == old { 3 } else { 4 };
            assert_eq!(*last, Operation::Commit(Some(metadata(sequence))));
        }
        if kind.family == Family::Keyless {
            let proof = database.prove_operation(3, new.size).await.unwrap();
            let found = verify_operation(kind, new.operations_root, new.size, 3, proof).unwrap();
            assert_eq!(found, Operation::Append { value: value_of(2).into() });
        }
        // What cannot be proved is said by name.
        let out = [(new.size, new.size), (0, new.size + 1), (0, 0), (u64::MAX, u64::MAX)];
        for (location, size) in out {
            let refused = database.prove_operation(location, size).await;
            assert!(matches!(refused, Err(Error::OutOfRange(_))), "{location} {size} {refused:?}");
        }
        let between = database.prove_operation(0, new.size - 1).await;
        assert!(matches!(between, Err(Error::Pruned)), "no commit ended there: {between:?}");
    });
}

#[test]
fn a_spoiled_proof_of_an_operation_is_refused() {
    for_each_kind(|context, kind| async move {
        let database = publisher(&context, kind, 2).await;
        let state = database.state().unwrap();
        let verify = |location, proof| {
            verify_operation(kind, state.operations_root, state.size, location, proof)
        };
        for location in [0, 1, WRITES + 3, state.size - 1] {
            let proof = database.prove_operation(location, state.size).await.unwrap();
            let meaning = verify(location, proof.clone()).unwrap();
            for spoiled in spoiled(&proof).chain(noise(&proof)) {
                if let Ok(found) = verify(location, spoiled) {
                    assert_eq!(found, meaning);
                }
            }
            for other in (0..state.size + 2).filter(|other| *other != location) {
                assert!(verify(other, proof.clone()).is_err(), "{location} is not {other}");
            }
            let (root, size) = (state.operations_root, state.size);
            let wrong = |kind, root, size| {
                assert!(verify_operation(kind, root, size, location, proof.clone()).is_err());
            };
            wrong(kind, Digest([0; 32]), size);
            wrong(kind, root, size + 1);
            wrong(kind, root, u64::MAX);
            let hash = match kind.hash {
                HashKind::Sha256 => HashKind::Blake3,
                HashKind::Blake3 => HashKind::Sha256,
            };
            wrong(Kind { hash, ..kind }, root, size);
        }
    });
}

const CURRENT: Kind = Kind { family: Family::Current, hash: HashKind::Blake3 };

/// Proves `key` and verifies the proof; returns the value.
async fn proved(database: &dyn Database, kind: Kind, key: &[u8]) -> Option<Bytes> {
    let root = database.state().unwrap().root;
    let found = database.prove_key(key).await.unwrap();
    assert_eq!(found.value, database.get(key).await.unwrap());
    let value = found.value.as_deref();
    verify_key(kind, root, key, value, found.proof.clone()).unwrap();
    // The same proof shows nothing else.
    let refuse = |key: &[u8], value: Option<&[u8]>, root| {
        assert!(verify_key(kind, root, key, value, found.proof.clone()).is_err());
    };
    refuse(key, Some(b"another value"), root);
    refuse(key, value, Digest([1; 32]));
    match value {
        Some(value) => {
            refuse(key, None, root);
            refuse(b"another key", Some(value), root);
        }
        None => refuse(key, Some(b""), root),
    }
    found.value
}

#[test]
fn keys_are_proved_present_and_absent() {
    for hash in HashKind::ALL {
        let kind = Kind { hash: *hash, ..CURRENT };
        run(|context| async move {
            let mut database = publisher(&context, kind, 0).await;
            assert_eq!(proved(&*database, kind, b"in an empty database").await, None);
            for batch in 0..BATCHES {
                write(&mut database, kind.family, batch).await;
                if batch % 8 != 7 {
                    continue;
                }
                let (mut present, mut absent) = (0, 0);
                for key in 0..120 {
                    match proved(&*database, kind, &key_of(key)).await {
                        Some(_) => present += 1,
                        None => absent += 1,
                    }
                }
                assert!(present > 50 && absent > 23, "{present} {absent}");
            }
            // Proofs hold after pruning and opening again.
            let floor = database.state().unwrap().floor;
            database.prune(floor).await.unwrap();
            database.sync().await.unwrap();
            drop(database);
            let at = OpenAt::Latest;
            let database = database::open(
                context.child("again"),
                kind,
                Place { generation: 1, mode: Mode::Full },
                at,
            )
            .await
            .unwrap();
            for key in 0..120 {
                proved(&*database, kind, &key_of(key)).await;
            }
        });
    }
}

#[test]
fn absence_is_proved_where_every_key_was_deleted() {
    run(|context| async move {
        let mut database = publisher(&context, CURRENT, 3).await;
        let full = database.state().unwrap();
        let keys = (0..97).map(|key| Change::Delete { key: key_of(key) });
        let deletes: Vec<_> = keys.collect();
        let prepared = database.prepare(None, &deletes, metadata(3)).await.unwrap();
        database.apply(prepared).await.unwrap();
        assert_eq!(proved(&*database, CURRENT, &key_of(1)).await, None);
        let found = database.prove_key(&key_of(1)).await.unwrap();
        // The emptiness is not of the state before, nor of the one after.
        assert!(verify_key(CURRENT, full.root, &key_of(1), None, found.proof.clone()).is_err());
        write(&mut database, CURRENT.family, 4).await;
        let after = database.state().unwrap().root;
        assert!(verify_key(CURRENT, after, &key_of(1), None, found.proof).is_err());
    });
}

#[test]
fn a_lone_key_is_its_own_neighbour() {
    run(|context| async move {
        let mut database = publisher(&context, CURRENT, 0).await;
        let change = Change::Put { key: key_of(1), value: b"alone".to_vec() };
        let prepared = database.prepare(None, &[change], metadata(0)).await.unwrap();
        database.apply(prepared).await.unwrap();
        assert_eq!(proved(&*database, CURRENT, &key_of(1)).await.unwrap(), "alone");
        let root = database.state().unwrap().root;
        for absent in 2..50 {
            assert_eq!(proved(&*database, CURRENT, &key_of(absent)).await, None);
            let found = database.prove_key(&key_of(absent)).await.unwrap();
            assert!(verify_key(CURRENT, root, &key_of(1), None, found.proof).is_err());
        }
    });
}

#[test]
fn an_overwritten_value_is_not_proved() {
    run(|context| async move {
        let mut database = publisher(&context, CURRENT, 3).await;
        let key = key_of(7);
        let old = database.prove_key(&key).await.unwrap();
        let change = Change::Put { key: key.clone(), value: b"newer".to_vec() };
        let prepared = database.prepare(None, &[change], metadata(3)).await.unwrap();
        database.apply(prepared).await.unwrap();
        let root = database.state().unwrap().root;
        let value = old.value.as_deref();
        assert!(value.is_some() && value != Some(b"newer"));
        assert!(verify_key(CURRENT, root, &key, value, old.proof).is_err());
        assert_eq!(proved(&*database, CURRENT, &key).await.unwrap(), "newer");
    });
}

async fn flip_key_proofs(context: Context, kind: Kind) {
    let database = publisher(&context, kind, 14).await;
    let state = database.state().unwrap();
    assert!(state.floor > 0, "more than one chunk of the bitmap");
    let keys = [key_of(0), key_of(1), key_of(50), key_of(1000), b"absent".to_vec()];
    let mut absent = 0;
    for key in keys {
        let found = database.prove_key(&key).await.unwrap();
        absent += u32::from(found.value.is_none());
        let value = found.value.as_deref();
        for spoiled in spoiled(&found.proof).chain(noise(&found.proof)) {
            if spoiled != found.proof {
                let verified = verify_key(kind, state.root, &key, value, spoiled.clone());
                assert!(verified.is_err(), "{}", hex::encode(&spoiled));
                // Nor is the opposite shown.
                let opposite = if value.is_some() { None } else { Some(&b""[..]) };
                assert!(verify_key(kind, state.root, &key, opposite, spoiled).is_err());
            }
        }
    }
    assert!((1..5).contains(&absent));
}

#[test]
fn a_spoiled_proof_of_a_key_is_refused() {
    for hash in HashKind::ALL {
        run(|context| flip_key_proofs(context, Kind { hash: *hash, ..CURRENT }));
    }
}

#[test]
fn no_other_family_proves_keys() {
    for_each_kind(|context, kind| async move {
        if kind.family == Family::Current {
            return;
        }
        let database = publisher(&context, kind, 1).await;
        let refused = database.prove_key(&key_of(1)).await;
        assert!(matches!(refused, Err(Error::Unsupported(_))));
        let (root, proof) = (database.state().unwrap().root, Bytes::from(vec![0; 100]));
        assert!(verify_key(kind, root, b"key", None, proof).is_err());
    });
}

#[test]
fn the_largest_records_are_proved() {
    for_each_kind(|context, kind| async move {
        let mut database = publisher(&context, kind, 1).await;
        let (key, value) = (vec![7; KEY_LENGTH_MAX], vec![9; VALUE_LENGTH_MAX]);
        let change = match kind.family {
            Family::Keyless => Change::Append { value: value.clone() },
            _ => Change::Put { key: key.clone(), value: value.clone() },
        };
        let start = database.state().unwrap().size;
        let prepared = database.prepare(None, &[change], metadata(1)).await.unwrap();
        database.apply(prepared).await.unwrap();
        let state = database.state().unwrap();
        let mut found = 0;
        for location in start..state.size {
            let proof = database.prove_operation(location, state.size).await.unwrap();
            let root = state.operations_root;
            match verify_operation(kind, root, state.size, location, proof).unwrap() {
                Operation::Put { key: theirs, value: its, .. } if theirs == key => {
                    assert_eq!(its, value);
                    found += 1;
                }
                Operation::Append { value: theirs } => {
                    assert_eq!(theirs, value);
                    found += 1;
                }
                _ => {}
            }
        }
        assert!(found >= 1, "{kind:?}");
        if kind.family == Family::Current {
            assert_eq!(proved(&*database, kind, &key).await.unwrap(), value);
            for absent in 1000..1100 {
                assert_eq!(proved(&*database, kind, &key_of(absent)).await, None);
            }
        }
    });
}

/// What the same commits lead to, and what proofs look like, is a promise to replicas and to who
/// keeps a proof: a change shows here, and needs a new execution version.
#[test]
fn roots_and_proofs_are_pinned() {
    let pins = Arc::new(Mutex::new(Vec::new()));
    for_each_kind(|context, kind| {
        let pins = pins.clone();
        async move {
            let database = publisher(&context, kind, 3).await;
            let state = database.state().unwrap();
            let mut pinned = vec![state.root.0.to_vec(), state.operations_root.0.to_vec()];
            pinned.push(database.prove_operation(5, state.size).await.unwrap().to_vec());
            if kind.family == Family::Current {
                for key in [key_of(7), key_of(1000)] {
                    pinned.push(database.prove_key(&key).await.unwrap().proof.to_vec());
                }
            }
            let digest = Sha256::hash(&[&pinned.concat()]);
            pins.lock().unwrap().push(hex::encode(&digest.as_ref()[..8]));
        }
    });
    let found = pins.lock().unwrap().clone();
    let expected = [
        "1db33192b04158e3",
        "8a24d96b37ca7573",
        "53039647dbd4b42f",
        "14dc128e08fd38e6",
        "72c6886d64bc4c42",
        "9baaf95dd1662a73",
        "6f5f4ee30a0deccd",
        "557bee47bba7fdcf",
    ];
    assert_eq!(found, expected);
}

#[test]
fn changes_cover_overwrites_and_deletes() {
    let all: Vec<_> = (0..BATCHES).flat_map(|batch| changes(Family::Current, batch)).collect();
    let deletes = all.iter().filter(|change| matches!(change, Change::Delete { .. })).count();
    assert!(deletes > 50 && all.len() - deletes > 500);
}
