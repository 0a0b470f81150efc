//! Proof files, and the proofs in them: of keys and of operations, of every family and hash.
#![no_main]

use bytes::Bytes;
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use libfuzzer_sys::fuzz_target;
use syncd::{
    checkpoint::{Checkpoint, Rotations},
    database::types::{Digest, Family, HashKind},
    verify::{Expect, ProofFile, Statement, Trust},
};

fuzz_target!(|data: &[u8]| {
    if let Ok(file) = ProofFile::from_json(data) {
        assert_eq!(ProofFile::from_json(&file.to_json()).unwrap(), file);
    }
    // The proof alone, of a state that somebody signed: a random one proves nothing.
    let Some((choice, proof)) = data.split_first() else { return };
    let family = [Family::Any, Family::Immutable, Family::Current, Family::Keyless]
        [usize::from(choice >> 1) % 4];
    let hash = if choice & 1 == 0 { HashKind::Sha256 } else { HashKind::Blake3 };
    let key = PrivateKey::from_seed(1);
    let checkpoint = Checkpoint {
        database: Digest([1; 32]),
        family,
        hash,
        sequence: 1,
        floor: 0,
        size: 100,
        root: Digest([2; 32]),
        operations_root: Digest([3; 32]),
        committed_at_ms: 1,
        signed_at_ms: 1,
    }
    .sign(&key);
    let trust = Trust { publishers: vec![key.public_key()], database: Digest([1; 32]) };
    for statement in [
        Statement::Value { key: "k".into(), value: "v".into() },
        Statement::Absent { key: "k".into() },
        Statement::Operation { location: u64::from(*choice) },
    ] {
        let proof = Bytes::copy_from_slice(proof);
        let rotations = Rotations::default();
        let file = ProofFile { statement, checkpoint: checkpoint.clone(), rotations, proof };
        assert!(file.verify(&trust, &Expect::default()).is_err(), "a random proof");
    }
});
