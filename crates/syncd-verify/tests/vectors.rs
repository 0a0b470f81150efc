//! What the library proved stays proved, and nothing else does. The vectors are made by
//! `cargo test --test database_families write_library_vectors -- --ignored` in the workspace's root.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

use bytes::Bytes;
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use serde_json::Value;
use std::time::{Duration, SystemTime};
use syncd_verify::{
    Error, Evidence, Expect, Invalid, ProofFile, Statement, Trust, Unproved, history_at,
    proto::{
        checkpoint::{Checkpoint, Rotation, Rotations, SignedCheckpoint},
        database::Kind,
        types::{Digest, Family, HashKind},
    },
    verify_boundary, verify_key, verify_operation,
};

fn read(name: &str) -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Every proof file made by the library, what it says, and whom it is to be trusted by.
fn proofs() -> Vec<(ProofFile, String, Trust)> {
    let made = read("library-proofs.json");
    let trust = Trust::from_hex(&[text(&made["publisher"])], text(&made["database"])).unwrap();
    let of = |entry: &Value| {
        let file = ProofFile::from_json(&serde_json::to_vec(&entry["file"]).unwrap()).unwrap();
        (file, text(&entry["says"]).to_string(), trust.clone())
    };
    let mut proofs: Vec<_> = made["proofs"].as_array().unwrap().iter().map(of).collect();
    for entry in read("trust.json")["proofs"].as_array().unwrap() {
        let file = serde_json::to_vec(&read(text(&entry["file"]))).unwrap();
        let trust = Trust::from_hex(&[text(&entry["publisher"])], text(&entry["database"]));
        let file = ProofFile::from_json(&file).unwrap();
        proofs.push((file, text(&entry["says"]).to_string(), trust.unwrap()));
    }
    proofs
}

fn kind(checkpoint: &Checkpoint) -> Kind {
    Kind { family: checkpoint.family, hash: checkpoint.hash }
}

#[test]
fn kept_proofs_are_still_proofs() {
    let proofs = proofs();
    let (mut full_chunks, mut exact) = (0, 0);
    for (file, says, trust) in &proofs {
        let proved = file.verify(trust, &Expect::default()).unwrap();
        assert!(proved.to_string().starts_with(says), "{proved}");
        assert_eq!(proved.statement, file.statement);
        assert_eq!(&proved.publisher, &trust.publishers[0]);
        assert_eq!(ProofFile::from_json(&file.to_json()).as_ref(), Ok(file));
        full_chunks += usize::from(proved.checkpoint.size >= 256);
        exact += usize::from(proved.checkpoint.size.is_multiple_of(256));
    }
    assert_eq!((proofs.len(), full_chunks, exact), (80, 68, 14));
}

/// A flipped bit and a prefix of a proof are refused, or prove the same.
#[test]
fn a_spoiled_proof_proves_nothing_else() {
    for (file, says, trust) in proofs() {
        let spoiled = |proof: Vec<u8>| {
            let file = ProofFile { proof: proof.into(), ..file.clone() };
            match file.verify(&trust, &Expect::default()) {
                Ok(proved) => assert!(proved.to_string().starts_with(&says), "{proved}"),
                Err(Error::NotProved(_)) => {}
                Err(other) => panic!("{other}"),
            }
        };
        // One bit of nearly each byte, each of the eight in turn.
        for bit in (0..file.proof.len() * 8).step_by(7) {
            let mut proof = file.proof.to_vec();
            proof[bit / 8] ^= 1 << (bit % 8);
            spoiled(proof);
        }
        for length in (0..file.proof.len()).step_by(3) {
            let file = ProofFile { proof: file.proof.slice(..length), ..file.clone() };
            assert!(file.verify(&trust, &Expect::default()).is_err(), "{length} bytes are enough");
        }
        let longer = [&file.proof[..], &[0]].concat().into();
        let file = ProofFile { proof: longer, ..file.clone() };
        assert!(file.verify(&trust, &Expect::default()).is_err(), "one byte more is taken");
    }
}

/// A true proof of one thing is none of another.
#[test]
fn a_proof_stands_for_one_thing() {
    for (file, _, _) in proofs() {
        let checkpoint = &file.checkpoint.checkpoint;
        let (kind, proof) = (kind(checkpoint), file.proof.clone());
        let mut wrong = checkpoint.root;
        wrong.0[31] ^= 1;
        match &file.statement {
            Statement::Operation { location } => {
                let (root, size) = (checkpoint.operations_root, checkpoint.size);
                let verify = |root, size, location| {
                    verify_operation(kind, root, size, location, proof.clone())
                };
                assert!(verify(root, size, *location).is_ok());
                assert_eq!(verify(wrong, size, *location), Err(Invalid::WrongRoot("proof")));
                assert!(verify(root, size + 1, *location).is_err());
                assert!(verify(root, size - 1, *location).is_err());
                assert!(verify(root, size, location ^ 1).is_err());
                let location = size;
                let out = Err(Invalid::OutOfRange { location, size });
                assert_eq!(verify(root, size, location), out);
                let boundary = verify_boundary(kind, root, size, 0, proof.clone());
                assert!(matches!(boundary, Err(Invalid::OfSomethingElse(_))), "{boundary:?}");
            }
            Statement::Value { key, value } => {
                let verify = |key: &[u8], value: Option<&[u8]>, root| {
                    verify_key(kind, root, key, value, proof.clone())
                };
                assert_eq!(verify(key, Some(value), checkpoint.root), Ok(()));
                let no = Err(Invalid::WrongRoot("proof"));
                assert_eq!(verify(key, Some(value), wrong), no);
                assert_eq!(verify(key, Some(b"another"), checkpoint.root), no);
                assert_eq!(verify(b"another", Some(value), checkpoint.root), no);
                assert!(verify(key, None, checkpoint.root).is_err());
                let any = Kind { family: Family::Any, ..kind };
                let refused = verify_key(any, checkpoint.root, key, Some(value), proof.clone());
                assert_eq!(refused, Err(Invalid::NotProvable(Family::Any)));
            }
            Statement::Absent { key } => {
                let verify =
                    |key: &[u8], value, root| verify_key(kind, root, key, value, proof.clone());
                assert_eq!(verify(key, None, checkpoint.root), Ok(()));
                assert_eq!(verify(key, None, wrong), Err(Invalid::WrongRoot("proof")));
                assert!(verify(key, Some(b"value"), checkpoint.root).is_err());
            }
        }
    }
}

/// The keys that are there are absent by no proof that is at hand, not even by their neighbours'.
#[test]
fn a_present_key_is_proved_absent_by_nothing() {
    let proofs = proofs();
    let of_state = |file: &ProofFile| {
        let checkpoint = &file.checkpoint.checkpoint;
        (checkpoint.root, checkpoint.hash)
    };
    let mut tried = 0;
    for (present, ..) in &proofs {
        let Statement::Value { key, .. } = &present.statement else { continue };
        let checkpoint = &present.checkpoint.checkpoint;
        for (absent, ..) in proofs.iter().filter(|(file, ..)| of_state(file) == of_state(present)) {
            if matches!(absent.statement, Statement::Absent { .. }) {
                let proof = absent.proof.clone();
                assert!(verify_key(kind(checkpoint), checkpoint.root, key, None, proof).is_err());
                tried += 1;
            }
        }
    }
    assert!(tried > 20, "{tried}");
}

#[test]
fn what_was_asked_for_is_compared() {
    let (file, _, trust) = proofs().swap_remove(0);
    let checkpoint = &file.checkpoint.checkpoint;
    let signed = SystemTime::UNIX_EPOCH + Duration::from_millis(checkpoint.signed_at_ms);
    let expect = |min_size, age, later| Expect {
        key: None,
        min_size,
        max_age: Some((Duration::from_secs(age), signed + Duration::from_secs(later))),
    };
    assert!(file.verify(&trust, &expect(Some(checkpoint.size), 10, 9)).is_ok());
    assert!(file.verify(&trust, &expect(Some(checkpoint.size), 10, 10)).is_ok());
    let larger = file.verify(&trust, &expect(Some(checkpoint.size + 1), 10, 9));
    assert!(matches!(larger, Err(Error::NotWhatWasAsked(_))), "{larger:?}");
    let old = file.verify(&trust, &expect(None, 10, 11));
    assert!(matches!(old, Err(Error::Refused(_))), "{old:?}");
    // An operation is not of a key.
    let of_key = Expect { key: Some(b"key/0".to_vec()), ..Expect::default() };
    assert!(matches!(file.verify(&trust, &of_key), Err(Error::NotWhatWasAsked(_))));
    for (file, _, trust) in proofs() {
        let (Statement::Value { key, .. } | Statement::Absent { key }) = &file.statement else {
            continue;
        };
        let of = |key: &[u8]| Expect { key: Some(key.to_vec()), ..Expect::default() };
        assert!(file.verify(&trust, &of(key)).is_ok());
        let other = file.verify(&trust, &of(b"another")).unwrap_err().to_string();
        assert!(other.contains("another"), "{other}");
    }
    // Another publisher, another database.
    let stranger =
        Trust { publishers: vec![PrivateKey::from_seed(9).public_key()], ..trust.clone() };
    assert!(matches!(file.verify(&stranger, &Expect::default()), Err(Error::Refused(_))));
    let elsewhere = Trust { database: Digest([2; 32]), ..trust };
    assert!(matches!(file.verify(&elsewhere, &Expect::default()), Err(Error::Refused(_))));
}

#[test]
fn files_that_are_none_are_refused_by_name() {
    let (file, ..) = proofs().swap_remove(0);
    let good: Value = serde_json::from_slice(&file.to_json()).unwrap();
    let refuse = |change: &dyn Fn(&mut Value)| {
        let mut wrong = good.clone();
        change(&mut wrong);
        ProofFile::from_json(&serde_json::to_vec(&wrong).unwrap()).unwrap_err().to_string()
    };
    let version = refuse(&|file| file["format"] = 2.into());
    assert!(version.contains("'format' is 2, this program reads 1"), "{version}");
    let damaged = refuse(&|file| file["location"] = 1.into());
    assert!(damaged.contains("checksum"), "{damaged}");
    let unknown = refuse(&|file| file["more"] = 1.into());
    assert!(unknown.contains("unknown field"), "{unknown}");
    let mut large = file.to_json();
    large.resize(syncd_verify::FILE_BYTES_MAX, b' ');
    assert!(ProofFile::from_json(&large).is_ok());
    large.push(b' ');
    assert!(ProofFile::from_json(&large).unwrap_err().to_string().contains("larger than"));
    // Whole, and nonsense.
    let long = Bytes::from(vec![7; 1025]);
    let nonsense = ProofFile { statement: Statement::Absent { key: long }, ..file.clone() };
    let text = ProofFile::from_json(&nonsense.to_json()).unwrap_err().to_string();
    assert!(text.contains("longer than 1024"), "{text}");
    let longest = Bytes::from(vec![7; 1024]);
    let allowed = ProofFile { statement: Statement::Absent { key: longest }, ..file };
    assert!(ProofFile::from_json(&allowed.to_json()).is_ok());
}

#[test]
fn trust_is_given_as_text() {
    let public = hex::encode(PrivateKey::from_seed(7).public_key());
    let trust = Trust::from_hex(&[&public], &"01".repeat(32)).unwrap();
    assert_eq!(trust.publishers, [PrivateKey::from_seed(7).public_key()]);
    assert_eq!(trust.database, Digest([1; 32]));
    for (publisher, database, named) in
        [("00", "01", "'00' is not a public key"), (public.as_str(), "01", "'01' is not 64")]
    {
        let error = Trust::from_hex(&[publisher], database).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

struct Boundary {
    kind: Kind,
    root: Digest,
    size: u64,
    start: u64,
    body: Bytes,
    nodes: Vec<Digest>,
    roots: Vec<Digest>,
}

fn boundaries() -> Vec<Boundary> {
    let digests = |value: &Value| {
        value.as_array().unwrap().iter().map(|digest| text(digest).parse().unwrap()).collect()
    };
    let of = |entry: &Value| Boundary {
        kind: Kind {
            family: text(&entry["family"]).parse().unwrap(),
            hash: text(&entry["hash"]).parse().unwrap(),
        },
        root: text(&entry["operations_root"]).parse().unwrap(),
        size: entry["size"].as_u64().unwrap(),
        start: entry["start"].as_u64().unwrap(),
        body: hex::decode(text(&entry["body"])).unwrap().into(),
        nodes: digests(&entry["nodes"]),
        roots: digests(&entry["roots"]),
    };
    read("library-boundaries.json").as_array().unwrap().iter().map(of).collect()
}

#[test]
fn boundaries_are_verified() {
    let boundaries = boundaries();
    assert!(boundaries.len() >= 16, "{}", boundaries.len());
    for Boundary { kind, root, size, start, body, nodes, roots } in boundaries {
        assert_eq!(verify_boundary(kind, root, size, start, body.clone()).unwrap(), nodes);
        assert_eq!(history_at(kind, root, size, start, body.clone()).unwrap(), roots);
        assert_eq!(roots.len(), nodes.len() + 1);
        let wrong = |root, size, start, body: Bytes| {
            assert!(verify_boundary(kind, root, size, start, body).is_err());
        };
        wrong(Digest([0; 32]), size, start, body.clone());
        wrong(root, size + 1, start, body.clone());
        wrong(root, size, start - 1, body.clone());
        wrong(root, size, start, [&body[..], &[0]].concat().into());
        let refused = verify_operation(kind, root, size, start, body.clone());
        assert!(matches!(refused, Err(Invalid::OfSomethingElse(_))), "{refused:?}");
        for bit in (0..body.len() * 8).step_by(7) {
            let mut spoiled = body.to_vec();
            spoiled[bit / 8] ^= 1 << (bit % 8);
            let found = verify_boundary(kind, root, size, start, spoiled.into());
            assert!(found.is_err() || found == Ok(nodes.clone()), "bit {bit}");
        }
    }
}

fn state(sequence: u64, size: u64, root: Digest, hash: HashKind, family: Family) -> Checkpoint {
    Checkpoint {
        database: Digest([1; 32]),
        family,
        hash,
        sequence,
        floor: 0,
        size,
        root,
        operations_root: root,
        committed_at_ms: 1,
        signed_at_ms: 2,
    }
}

fn evidence(known: SignedCheckpoint, offered: SignedCheckpoint) -> Evidence {
    Evidence {
        known,
        offered,
        reason: "why".into(),
        response: None,
        rotations: Rotations::default(),
    }
}

#[test]
fn two_histories_are_evidence_and_one_is_none() {
    let key = PrivateKey::from_seed(7);
    let trusted = || vec![key.public_key()];
    let sign = |sequence, size, root: u8| {
        let (hash, family) = (HashKind::Blake3, Family::Keyless);
        state(sequence, size, Digest([root; 32]), hash, family).sign(&key)
    };
    let fork = evidence(sign(5, 50, 1), sign(5, 50, 2));
    let text = serde_json::to_vec(&fork.to_json()).unwrap();
    assert_eq!(Evidence::from_json(&text).as_ref(), Ok(&fork));
    let with_response = Evidence { response: Some(vec![1, 2, 3]), ..fork.clone() };
    let text = serde_json::to_vec(&with_response.to_json()).unwrap();
    assert_eq!(Evidence::from_json(&text).as_ref(), Ok(&with_response));
    // What describes one history is none, whatever else is in the file.
    let twice = Evidence { response: Some(vec![1]), ..evidence(sign(5, 50, 1), sign(5, 50, 1)) };
    let text = twice.verify(trusted()).unwrap_err().to_string();
    assert!(text.contains("states of one history"), "{text}");
    let said = fork.verify(trusted()).unwrap();
    assert!(said.contains("commit 5, size 50"), "{said}");
    let stranger = vec![PrivateKey::from_seed(9).public_key()];
    assert!(matches!(
        fork.verify(stranger),
        Err(Unproved::NotThePublishers { which: "known", .. })
    ));
    let forged = PrivateKey::from_seed(9);
    let other = state(5, 50, Digest([2; 32]), HashKind::Blake3, Family::Keyless).sign(&forged);
    let refused = evidence(sign(5, 50, 1), other).verify(trusted());
    assert!(matches!(refused, Err(Unproved::NotThePublishers { which: "offered", .. })));
    for (known, offered) in [
        (sign(5, 50, 1), sign(5, 50, 1)),
        (sign(5, 50, 1), sign(4, 40, 2)),
        (sign(5, 50, 1), sign(4, 49, 2)),
        // A later one, without what would show that it is of another history.
        (sign(5, 50, 1), sign(6, 60, 2)),
    ] {
        let refused = evidence(known, offered).verify(trusted());
        assert!(matches!(refused, Err(Unproved::NoContradiction(_))), "{refused:?}");
    }
    for (name, wrong) in
        [("format", Value::from(2)), ("known", Value::Null), ("response", 7.into())]
    {
        let mut json = fork.to_json();
        json[name] = wrong;
        let refused = Evidence::from_json(&serde_json::to_vec(&json).unwrap());
        assert!(matches!(refused, Err(Unproved::Malformed(_))), "{name}: {refused:?}");
    }
}

/// A longer history is held against the shorter one by the answer that shows what it had then.
#[test]
fn a_longer_history_that_does_not_contain_the_shorter_one_is_evidence() {
    let key = PrivateKey::from_seed(7);
    for Boundary { kind, root, size, start, body, roots, .. } in boundaries() {
        let longer = state(9, size, root, kind.hash, kind.family).sign(&key);
        let with = |known: Digest, body: &Bytes| Evidence {
            response: Some(body.to_vec()),
            ..evidence(state(8, start, known, kind.hash, kind.family).sign(&key), longer.clone())
        };
        let trusted = || vec![key.public_key()];
        let said = with(Digest([9; 32]), &body).verify(trusted()).unwrap();
        assert!(said.contains("does not contain the shorter one"), "{said}");
        for own in roots {
            let refused = with(own, &body).verify(trusted());
            assert!(matches!(refused, Err(Unproved::NoContradiction(_))), "{refused:?}");
        }
        let refused = with(Digest([9; 32]), &body.slice(1..)).verify(trusted());
        assert!(matches!(refused, Err(Unproved::NoContradiction(_))), "{refused:?}");
    }
}

/// Evidence and proofs follow the chain of keys.
#[test]
fn keys_are_followed() {
    let [old, new] = [7, 8].map(PrivateKey::from_seed);
    let rotations = Rotations(vec![Rotation::new(Digest([1; 32]), 6, &old, &new)]);
    let of = |sequence, root: u8, key: &PrivateKey| {
        let root = Digest([root; 32]);
        state(sequence, 10 * sequence, root, HashKind::Blake3, Family::Keyless).sign(key)
    };
    let both = Evidence { rotations, ..evidence(of(6, 1, &new), of(6, 2, &new)) };
    assert!(both.verify(vec![old.public_key()]).is_ok());
    assert!(both.verify(vec![new.public_key()]).is_ok());
    let late = Evidence { offered: of(6, 2, &old), ..both };
    assert!(late.verify(vec![old.public_key()]).is_err(), "a retired key convicts nobody");
}
