//! Writes the corpora that fuzzing begins with (`fuzz/README.md`).
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

#[path = "../crates/syncd-proto/tests/samples/mod.rs"]
mod samples;

use bytes::Bytes;
use commonware_codec::Encode as _;
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use samples::{checkpoint, commit, hello, requests, rotation, trace};
use syncd_proto::{
    checkpoint::{Parameters, Rotations},
    commit::Commit,
    database::EXECUTION_VERSION,
    types::{Family, HashKind},
    wire::{
        ClientMessage, Code, Extensions, Features, Refused, Reply, Response, ServerMessage,
        Versions, Welcome,
    },
};

#[test]
#[ignore = "writes files: run it by hand when a format changes"]
fn write_fuzz_seeds() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let write = |target: &str, name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(root.join(target)).unwrap();
        std::fs::write(root.join(target).join(format!("seed-{name}")), bytes).unwrap();
    };
    let rotations = Rotations(vec![rotation()]);
    write("wire_client", "hello", &hello().encode());
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
    let welcome = Welcome {
        version: Versions::OURS.newest,
        features: Features::OURS,
        execution: EXECUTION_VERSION,
        hash: HashKind::Blake3,
        checkpoint: checkpoint(8),
        log_first: 1,
        operations_max: 2,
        bytes_max: 3,
        requests_max: 4,
        heartbeat_interval: std::time::Duration::from_secs(5),
        rotations: rotations.clone(),
        extensions: Extensions::default(),
    };
    write("wire_server", "welcome", &Reply::Welcome(Box::new(welcome)).encode());
    let refused = Refused::new(Code::Pruned, "gone");
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
    let parameters = Parameters::new([3; 32], public, Family::Any, HashKind::Sha256);
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
