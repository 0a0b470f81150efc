//! Vectors that `syncd-verify`, which decodes by itself, is held against: made by the library.

use super::{kinds, metadata, publisher, run, write};
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use serde_json::json;
use std::path::Path;
use syncd::{
    checkpoint::{Checkpoint, Rotations, SignedCheckpoint},
    database::{
        Database, Fetch, Kind, State,
        types::{Change, Digest, Family},
    },
    verify::{ProofFile, Statement, Trust, history_at, verify_boundary},
};

/// Operations of a chunk of the bitmap.
const CHUNK: u64 = 256;

fn sign(kind: Kind, state: State, sequence: u64) -> SignedCheckpoint {
    Checkpoint {
        database: Digest([1; 32]),
        family: kind.family,
        hash: kind.hash,
        sequence,
        floor: state.floor,
        size: state.size,
        root: state.root,
        operations_root: state.operations_root,
        committed_at_ms: metadata(sequence).committed_at_ms,
        signed_at_ms: metadata(sequence).committed_at_ms + 1,
    }
    .sign(&PrivateKey::from_seed(7))
}

/// Proofs of every key, present and absent, of a database that ends in the middle of a chunk, and of
/// one that ends with it.
async fn keys(database: &mut Box<dyn Database>, kind: Kind, files: &mut Vec<ProofFile>) {
    let mut sequence = 30;
    loop {
        let state = database.state().unwrap();
        let is_full = state.size.is_multiple_of(CHUNK);
        if is_full || files.is_empty() {
            for key in ["key/0", "key/7", "key/50", "key/96", "key/none", "zzz", "once"] {
                let found = database.prove_key(key.as_bytes()).await.unwrap();
                let key = bytes::Bytes::copy_from_slice(key.as_bytes());
                let statement = match found.value {
                    Some(value) => Statement::Value { key, value },
                    None => Statement::Absent { key },
                };
                let checkpoint = sign(kind, state, sequence);
                let rotations = Rotations::default();
                files.push(ProofFile { statement, checkpoint, rotations, proof: found.proof });
            }
        }
        if is_full {
            return;
        }
        // One key more, so that the floor does not follow at the same pace and every size comes.
        let missing = CHUNK - state.size % CHUNK;
        let changes: Vec<_> = (0..missing.saturating_sub(2).min(5))
            .map(|n| Change::Put {
                key: format!("more/{sequence}/{n}").into_bytes(),
                value: vec![1],
            })
            .collect();
        let prepared = database.prepare(None, &changes, metadata(sequence)).await.unwrap();
        database.apply(prepared).await.unwrap();
        sequence += 1;
    }
}

/// Operations near the ends of chunks and of the state.
async fn operations(database: &dyn Database, kind: Kind, files: &mut Vec<ProofFile>) {
    let state = database.state().unwrap();
    for location in [state.floor, state.floor + 1, state.size / 2, state.size - 2, state.size - 1] {
        let proof = database.prove_operation(location, state.size).await.unwrap();
        let statement = Statement::Operation { location };
        let (checkpoint, rotations) = (sign(kind, state, 30), Rotations::default());
        files.push(ProofFile { statement, checkpoint, rotations, proof });
    }
}

async fn boundaries(database: &dyn Database, kind: Kind, into: &mut Vec<serde_json::Value>) {
    let state = database.state().unwrap();
    for start in [1, 21, state.size / 2, state.size - 1] {
        let fetch = Fetch::Boundary { size: state.size, start };
        let Ok(served) = database.serve(fetch, 1 << 20).await else { continue };
        let (root, size, body) = (state.operations_root, state.size, served.body);
        let nodes = verify_boundary(kind, root, size, start, body.clone()).unwrap();
        let roots = history_at(kind, root, size, start, body.clone()).unwrap();
        into.push(json!({
            "family": kind.family,
            "hash": kind.hash,
            "operations_root": root,
            "size": size,
            "start": start,
            "body": hex::encode(body),
            "nodes": nodes,
            "roots": roots,
        }));
    }
}

#[test]
#[ignore = "writes files: run it by hand when a format changes"]
fn write_library_vectors() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/syncd-verify/tests/vectors");
    let trust = Trust {
        publishers: vec![PrivateKey::from_seed(7).public_key()],
        database: Digest([1; 32]),
    };
    let (mut boundary, mut proofs) = (Vec::new(), Vec::new());
    for kind in kinds() {
        let (files, more) = {
            let kept = std::sync::Arc::new(std::sync::Mutex::new((Vec::new(), Vec::new())));
            let out = kept.clone();
            run(|context| async move {
                let (mut files, mut more) = (Vec::new(), Vec::new());
                let mut database = publisher(&context, kind, 29).await;
                write(&mut database, kind.family, 29).await;
                operations(&*database, kind, &mut files).await;
                boundaries(&*database, kind, &mut more).await;
                if kind.family == Family::Current {
                    let mut of_keys = Vec::new();
                    keys(&mut database, kind, &mut of_keys).await;
                    files.extend(of_keys);
                }
                *out.lock().unwrap() = (files, more);
            });
            std::mem::take(&mut *kept.lock().unwrap())
        };
        for file in files {
            let expect = syncd::verify::Expect::default();
            let proved = file.verify(&trust, &expect).unwrap().to_string();
            let file: serde_json::Value = serde_json::from_slice(&file.to_json()).unwrap();
            proofs.push(json!({ "says": proved.split(';').next(), "file": file }));
        }
        boundary.extend(more);
    }
    let write = |name: &str, value: serde_json::Value| {
        let mut text = serde_json::to_string(&value).unwrap();
        text.push('\n');
        std::fs::write(directory.join(name), text).unwrap();
    };
    let publisher = hex::encode(&trust.publishers[0]);
    write(
        "library-proofs.json",
        json!({ "publisher": publisher, "database": trust.database, "proofs": proofs }),
    );
    write("library-boundaries.json", json!(boundary));
}
