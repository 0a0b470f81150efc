//! The commit log through crashes of the simulated disk.
#![allow(missing_docs, clippy::unwrap_used)]

use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use commonware_runtime::{Runner as _, Supervisor as _, deterministic};
use std::time::Duration;
use syncd::{
    checkpoint::{Checkpoint, SignedCheckpoint},
    commit_log::{Base, Bounds, Commit, CommitLog, Retention, SEGMENT_RECORDS},
    database::{
        EXECUTION_VERSION,
        types::{Change, Digest, Family, HashKind},
    },
};

fn checkpoint(sequence: u64) -> SignedCheckpoint {
    let root = Digest([u8::try_from(sequence % 256).unwrap(); 32]);
    Checkpoint {
        database: Digest([1; 32]),
        family: Family::Any,
        hash: HashKind::Blake3,
        sequence,
        floor: 0,
        size: 10 + sequence,
        root,
        operations_root: root,
        committed_at_ms: 1_700_000_000_000 + sequence,
        signed_at_ms: 1_700_000_000_000 + sequence,
    }
    .sign(&PrivateKey::from_seed(7))
}

fn commit(sequence: u64) -> Commit {
    let base = checkpoint(sequence - 1).checkpoint;
    Commit {
        base: Base { size: base.size, root: base.root },
        execution: EXECUTION_VERSION,
        changes: vec![Change::Put { key: b"k".to_vec(), value: vec![7; 100] }],
        idempotency: Vec::new(),
        checkpoint: checkpoint(sequence),
    }
}

/// What `append` has returned for is there after a crash, from any base.
fn survives(first: u64, appends: u64) {
    let (_, crashed) =
        deterministic::Runner::seeded(first).start_and_recover(|context| async move {
            let base = Commit::base_record(checkpoint(first), EXECUTION_VERSION);
            let log = CommitLog::create(context.child("log"), 0, &base).await.unwrap();
            for sequence in first + 1..=first + appends {
                log.append(&[commit(sequence)]).await.unwrap();
            }
        });
    deterministic::Runner::from(crashed).start(|context| async move {
        let mut seen = Vec::new();
        let log = CommitLog::open(context.child("log"), 0, |commit| seen.push(commit.sequence()))
            .await
            .unwrap()
            .expect("the log is there");
        let expected: Vec<u64> = (first..=first + appends).collect();
        assert_eq!(seen, expected);
        assert_eq!(log.read(first + appends).await.unwrap().sequence(), first + appends);
    });
}

#[test]
fn appended_commits_survive_a_crash() {
    for first in [0, 1, 127, 128, 200] {
        for appends in [0, 1, 5, 127, 300] {
            survives(first, appends);
        }
    }
}

/// The log has no more segments than descriptors allow, whatever its age and bytes, and still the newest records.
#[test]
fn the_log_is_cut_to_its_segments() {
    deterministic::Runner::seeded(1).start(|context| async move {
        let base = Commit::base_record(checkpoint(0), EXECUTION_VERSION);
        let log = CommitLog::create(context.child("log"), 0, &base).await.unwrap();
        let segment = SEGMENT_RECORDS.get();
        let last = 5 * segment + 10;
        let commits: Vec<Commit> = (1..=last).map(commit).collect();
        log.append(&commits).await.unwrap();
        let retention = |segments| Retention { age: Duration::MAX, bytes: u64::MAX, segments };
        log.trim(retention(6), u64::MAX).await.unwrap();
        assert_eq!(log.bounds(), Bounds { first: 0, last });
        log.trim(retention(2), u64::MAX).await.unwrap();
        assert_eq!(log.bounds(), Bounds { first: 4 * segment, last });
        assert_eq!(log.read(last).await.unwrap().sequence(), last);
        // What is needed is kept, however many segments it takes.
        log.trim(retention(1), 4 * segment + 1).await.unwrap();
        assert_eq!(log.bounds().first, 4 * segment);
    });
}
