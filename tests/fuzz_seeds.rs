//! Writes the corpora that fuzzing begins with (`fuzz/README.md`).
#![allow(missing_docs, clippy::unwrap_used)]

use bytes::Bytes;
use commonware_codec::{DecodeExt as _, Encode as _, FixedSize as _};
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use syncd::{
    checkpoint::{Checkpoint, Rotation, Rotations, SignedCheckpoint},
    commit_log::{Base, Commit, IdempotencyEntry},
    database::{
        EXECUTION_VERSION, Fetch,
        types::{Change, Digest, Family, HashKind, Mode},
    },
    telemetry::context::TraceContext,
    wire::{ClientMessage, Hello, Refused, Reply, Request, Response, ServerMessage, WIRE_VERSION},
};

fn checkpoint(sequence: u64) -> SignedCheckpoint {
    Checkpoint {
        database: Digest([1; 32]),
        family: Family::Any,
        hash: HashKind::Blake3,
        sequence,
        floor: 3,
        size: 10,
        root: Digest([2; 32]),
        operations_root: Digest([2; 32]),
        committed_at_ms: 1_700_000_000_000,
        signed_at_ms: 1_700_000_000_001,
    }
    .sign(&PrivateKey::from_seed(7))
}

fn trace() -> TraceContext {
    TraceContext::decode(Bytes::from_static(&[7; TraceContext::SIZE])).unwrap()
}

fn commit() -> Commit {
    Commit {
        base: Base { size: 4, root: Digest([9; 32]) },
        execution: EXECUTION_VERSION,
        changes: vec![
            Change::Put { key: b"k".to_vec(), value: vec![0, 255] },
            Change::Delete { key: b"gone".to_vec() },
        ],
        idempotency: vec![IdempotencyEntry { key: b"once".to_vec(), body: Digest([5; 32]) }],
        checkpoint: checkpoint(8),
    }
}

fn rotation() -> Rotation {
    let [old, new] = [7, 8].map(PrivateKey::from_seed);
    Rotation::new(Digest([1; 32]), 9, &old, &new)
}

/// One of each kind.
fn requests() -> [Request; 6] {
    let max = std::num::NonZeroU64::new(5).unwrap();
    [
        Request::Checkpoint,
        Request::Fetch(Fetch::Operations { size: 9, start: 3, max }),
        Request::Fetch(Fetch::Boundary { size: 9, start: 3 }),
        Request::Follow { sequence: 4, credit: 5 },
        Request::Watch { target: 6 },
        Request::CheckpointAt { sequence: 7 },
    ]
}

#[test]
#[ignore = "writes files: run it by hand when a format changes"]
fn write_fuzz_seeds() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let write = |target: &str, name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(root.join(target)).unwrap();
        std::fs::write(root.join(target).join(format!("seed-{name}")), bytes).unwrap();
    };
    let rotations = Rotations(vec![rotation()]);
    let hello = Hello {
        wire: WIRE_VERSION,
        execution: EXECUTION_VERSION,
        family: Family::Any,
        mode: Mode::Full,
        database: Some(Digest([1; 32])),
        newest: Some(checkpoint(8)),
        rotations: rotations.clone(),
    };
    write("wire_client", "hello", &hello.encode());
    for (index, request) in requests().into_iter().enumerate() {
        let message = ClientMessage::Request { id: 7, trace: Some(trace()), request };
        write("wire_client", &format!("request-{index}"), &message.encode());
    }
    for (name, message) in [
        ("credit", ClientMessage::Credit { id: 1, bytes: 2 }),
        ("cancel", ClientMessage::Cancel { id: 1 }),
        ("ping", ClientMessage::Ping),
    ] {
        write("wire_client", name, &message.encode());
    }
    let welcome = syncd::wire::Welcome {
        execution: EXECUTION_VERSION,
        hash: HashKind::Blake3,
        checkpoint: checkpoint(8),
        log_first: 1,
        operations_max: 2,
        bytes_max: 3,
        requests_max: 4,
        heartbeat_interval: std::time::Duration::from_secs(5),
        rotations: rotations.clone(),
    };
    write("wire_server", "welcome", &Reply::Welcome(Box::new(welcome)).encode());
    let refused = Refused::new(syncd::wire::Code::Pruned, "gone");
    write("wire_server", "reply-refused", &Reply::Refused(refused.clone()).encode());
    for (name, response) in [
        ("checkpoint", Response::Checkpoint(Box::new(checkpoint(1)))),
        ("operations", Response::Operations(Bytes::from_static(b"abc"))),
        ("commit", Response::Commit { commit: Box::new(commit()), trace: Some(trace()) }),
        ("refused", Response::Refused(refused)),
    ] {
        write("wire_server", name, &ServerMessage::Response { id: 7, response }.encode());
    }
    write("wire_server", "pong", &ServerMessage::Pong.encode());
    write("commit_record", "commit", &commit().encode());
    let base = Commit::base_record(checkpoint(3), EXECUTION_VERSION);
    write("commit_record", "base", &base.encode());
    write("checkpoint", "signed", &checkpoint(8).encode());
    write("checkpoint", "rotation", &rotation().encode());
    write("checkpoint", "rotations", &rotations.encode());
    let public = PrivateKey::from_seed(1).public_key();
    let parameters =
        syncd::checkpoint::Parameters::new([3; 32], public, Family::Any, HashKind::Sha256);
    write("checkpoint", "parameters", &parameters.encode());
    let evidence = syncd::verify::Evidence {
        known: checkpoint(8),
        offered: checkpoint(9),
        reason: "why".into(),
        response: Some(vec![1, 2, 3]),
        rotations,
    };
    let directory = tempfile::tempdir().unwrap();
    let path = syncd::client::evidence::write(&evidence, directory.path()).unwrap().unwrap();
    write("evidence", "file", &std::fs::read(path).unwrap());
    let keys = tempfile::tempdir().unwrap();
    for as_pem in [false, true] {
        let path = keys.path().join(format!("key-{as_pem}"));
        syncd::keys::write_private(&path, &PrivateKey::from_seed(1), as_pem).unwrap();
        write("key_files", &format!("private-{as_pem}"), &std::fs::read(path).unwrap());
    }
    let hex = syncd::keys::public_hex(&PrivateKey::from_seed(1));
    write("key_files", "list", format!("# ours\n{hex} # one\n\n{hex}\n").as_bytes());
    let batch = r#"{"key":"a","value":"b"}
{"key_b64":"AAE=","value_b64":"/w=="}
{"key":"gone","delete":true}
"#;
    write("batch", "lines", batch.as_bytes());
    // Kind, size, start and root before the response, as the target takes its input apart.
    write("boundary_proof", "empty", &[0; 64]);
    write("boundary_proof", "long", &[1; 600]);
}
