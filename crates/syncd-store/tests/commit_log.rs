//! The commit log through crashes of the simulated disk.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use commonware_runtime::{
    Blob as _, Clock as _, Runner as _, Storage as _, Supervisor as _, WriteOptions, deterministic,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use syncd_proto::{
    checkpoint::{Checkpoint, SignedCheckpoint},
    database::EXECUTION_VERSION,
    types::{Change, Digest, Family, HashKind},
};
use syncd_store::{
    commit_log::{
        Base, Bounds, Commit, CommitLog, Error, Retention, partition_names,
        required_partition_names,
    },
    runtime::{Guard, Runtime as _, StorageGuard},
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
        let segment = deterministic::Context::LOG_SEGMENT_RECORDS.get();
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

type Context = deterministic::Context;

fn run<F: Future<Output = ()>>(test: impl FnOnce(Context) -> F) {
    deterministic::Runner::seeded(1).start(test);
}

/// A log from `first` to `last`.
async fn log(context: &Context, first: u64, last: u64) -> CommitLog<Context> {
    let base = Commit::base_record(checkpoint(first), EXECUTION_VERSION);
    let log = CommitLog::create(context.child("log"), 0, &base).await.unwrap();
    let commits: Vec<Commit> = (first + 1..=last).map(commit).collect();
    log.append(&commits).await.unwrap();
    log
}

async fn reopen(context: &Context) -> CommitLog<Context> {
    let opened = CommitLog::open(context.child("again"), 0, |_| {}).await.unwrap();
    opened.expect("the log is there")
}

const ALL: Retention = Retention { age: Duration::MAX, bytes: u64::MAX, segments: usize::MAX };

#[test]
fn what_is_beyond_the_bounds_is_said_by_name() {
    run(|context| async move {
        let log = log(&context, 5, 300).await;
        assert_eq!(log.bounds(), Bounds { first: 5, last: 300 });
        assert_eq!(log.read(5).await.unwrap().sequence(), 5);
        assert_eq!(log.read(300).await.unwrap().sequence(), 300);
        assert!(matches!(log.read(301).await, Err(Error::Ahead { last: 300 })));
        assert!(matches!(log.read(4).await, Err(Error::Trimmed { first: 5 })));
        assert_eq!(log.segments(), 3);
        let one = commonware_codec::EncodeSize::encode_size(&commit(7)) as u64;
        let base = Commit::base_record(checkpoint(5), EXECUTION_VERSION);
        let base = commonware_codec::EncodeSize::encode_size(&base) as u64;
        assert_eq!(log.bytes(), base + 295 * one);
        // Nothing to append is nothing.
        log.append(&[]).await.unwrap();
        assert_eq!(log.bounds().last, 300);
    });
}

#[test]
fn a_record_is_found_by_the_size_that_it_leads_to() {
    run(|context| async move {
        for (first, last) in [(0, 0), (0, 9), (5, 300)] {
            let log = log(&context, first, last).await;
            for sequence in [first, first + (last - first) / 3, last] {
                let found = log.find_size(10 + sequence).await.unwrap().unwrap();
                assert_eq!(found.sequence(), sequence);
            }
            assert_eq!(log.find_size(9 + first).await.unwrap(), None);
            assert_eq!(log.find_size(11 + last).await.unwrap(), None);
            log.close().await;
        }
    });
}

#[test]
fn the_log_is_cut_to_its_bytes() {
    run(|context| async move {
        let segment = deterministic::Context::LOG_SEGMENT_RECORDS.get();
        let log = log(&context, 0, 3 * segment + 10).await;
        let all = log.bytes();
        let mut told = log.subscribe();
        log.trim(Retention { bytes: all, ..ALL }, u64::MAX).await.unwrap();
        assert_eq!(log.bounds().first, 0, "it fits");
        log.trim(Retention { bytes: all - 1, ..ALL }, u64::MAX).await.unwrap();
        assert_eq!(log.bounds().first, segment, "a segment is what has to go");
        assert_eq!((log.segments(), told.borrow_and_update().first), (3, segment));
        assert!(log.bytes() < all);
        assert!(
            matches!(log.read(segment - 1).await, Err(Error::Trimmed { first }) if first == segment)
        );
        // What is still needed, and the newest record, stay.
        log.trim(Retention { bytes: 0, ..ALL }, 2 * segment - 1).await.unwrap();
        assert_eq!(log.bounds().first, segment);
        log.trim(Retention { bytes: 0, ..ALL }, 2 * segment).await.unwrap();
        assert_eq!(log.bounds().first, 2 * segment);
        log.trim(Retention { bytes: 0, ..ALL }, u64::MAX).await.unwrap();
        assert_eq!(log.bounds(), Bounds { first: 3 * segment, last: 3 * segment + 10 });
        log.close().await;
        let again = reopen(&context).await;
        assert_eq!(again.bounds(), Bounds { first: 3 * segment, last: 3 * segment + 10 });
        assert_eq!(again.segments(), 1);
    });
}

#[test]
fn the_log_is_cut_by_age() {
    run(|context| async move {
        let segment = deterministic::Context::LOG_SEGMENT_RECORDS.get();
        let log = log(&context, 0, segment).await;
        context.sleep(Duration::from_secs(100)).await;
        let later: Vec<Commit> = (segment + 1..=2 * segment).map(commit).collect();
        log.append(&later).await.unwrap();
        let old = |seconds| Retention { age: Duration::from_secs(seconds), ..ALL };
        log.trim(old(101), u64::MAX).await.unwrap();
        assert_eq!(log.bounds().first, 0);
        log.trim(old(99), u64::MAX).await.unwrap();
        assert_eq!(log.bounds().first, segment, "its newest record is old enough");
        context.sleep(Duration::from_secs(200)).await;
        log.trim(old(99), u64::MAX).await.unwrap();
        assert_eq!(log.bounds().first, 2 * segment, "the newest segment stays");
    });
}

#[test]
fn what_was_given_out_is_remembered() {
    run(|context| async move {
        let fresh = log(&context, 3, 3).await;
        assert_eq!(fresh.given_out_before(), Some(3));
        fresh.append(&[commit(4), commit(5)]).await.unwrap();
        fresh.sync().await.unwrap();
        fresh.close().await;
        assert!(!fresh.is_open().await);
        assert!(matches!(fresh.append(&[commit(6)]).await, Err(Error::Poisoned)));
        assert!(matches!(fresh.read(4).await, Err(Error::Poisoned)));
        assert!(matches!(fresh.sync().await, Err(Error::Poisoned)));
        assert_eq!(CommitLog::<Context>::given_out(&context.child("mark"), 0).await, Some(5));
        assert_eq!(CommitLog::<Context>::given_out(&context.child("mark"), 1).await, None);
        let again = reopen(&context).await;
        assert_eq!(again.given_out_before(), Some(5));
        assert!(again.is_open().await);
        again.sync().await.unwrap();
        again.close().await;
        // A log that is made anew begins anew.
        let made = log(&context, 1, 2).await;
        assert_eq!((made.given_out_before(), made.bounds().last), (Some(1), 2));
    });
}

/// One damaged copy of the mark loses nothing; two claim nothing.
#[test]
fn the_mark_has_two_copies() {
    run(|context| async move {
        let made = log(&context, 0, 40).await;
        made.sync().await.unwrap();
        made.close().await;
        let names = partition_names(0);
        let mark = names.iter().find(|name| name.ends_with("_mark")).unwrap();
        for (damaged, claimed) in [(&[0u64][..], Some(40)), (&[0, 4096], None)] {
            let files = context.scan(mark).await.unwrap();
            let (blob, length) = context.open(mark, &files[0]).await.unwrap();
            assert!(length > 4096);
            for offset in damaged {
                blob.write_at(*offset, vec![0xff; 8], WriteOptions::SYNC).await.unwrap();
            }
            drop(blob);
            let again = reopen(&context).await;
            assert_eq!(again.given_out_before(), claimed, "{damaged:?}");
            if claimed.is_some() {
                // Whole again from here on.
                again.append(&[commit(41)]).await.unwrap();
                again.sync().await.unwrap();
                again.close().await;
                let whole = reopen(&context).await;
                assert_eq!(whole.given_out_before(), Some(41));
                whole.close().await;
            } else {
                again.close().await;
            }
        }
    });
}

#[test]
fn a_log_that_is_not_there_is_none() {
    run(|context| async move {
        let none = CommitLog::open(context.child("none"), 7, |_| {}).await.unwrap();
        assert!(none.is_none());
        let required = required_partition_names(7);
        assert!(!required.is_empty());
        let all = partition_names(7);
        assert!(required.iter().all(|name| all.contains(name) && name.contains('7')));
        log(&context, 0, 1).await.close().await;
        for partition in required_partition_names(0) {
            assert!(context.scan(&partition).await.is_ok(), "{partition}");
        }
    });
}

/// Says that the storage was moved away as soon as it was.
#[derive(Default)]
struct Moved(AtomicBool);

impl Guard for Moved {
    fn check(&self) -> Result<(), String> {
        if self.0.load(Ordering::Relaxed) { Err("it was moved".into()) } else { Ok(()) }
    }

    fn with(&self, _: &[String]) -> StorageGuard {
        unreachable!("the log watches no partitions of its own")
    }
}

/// A storage that was moved away takes nothing more, and nothing is given out.
#[test]
fn nothing_is_appended_where_nobody_will_find_it() {
    run(|context| async move {
        let log = log(&context, 0, 1).await;
        let moved = Arc::new(Moved::default());
        log.guard_with(moved.clone());
        log.append(&[commit(2)]).await.unwrap();
        log.check_guard().unwrap();
        moved.0.store(true, Ordering::Relaxed);
        assert!(matches!(log.check_guard(), Err(Error::Gone(text)) if text == "it was moved"));
        assert!(matches!(log.append(&[commit(3)]).await, Err(Error::Gone(_))));
        assert_eq!(log.bounds().last, 2);
    });
}

/// A record that does not follow the one before it is damage, wherever it stands.
#[test]
fn records_that_do_not_follow_each_other_are_damage() {
    run(|context| async move {
        let log = log(&context, 0, 2).await;
        let mut other = commit(3);
        other.base.root = Digest([0xee; 32]);
        log.append(&[other, commit(4)]).await.unwrap();
        log.close().await;
        let opened = CommitLog::open(context.child("again"), 0, |_| {}).await;
        let Err(Error::Corrupt(text)) = opened else { panic!("it was opened") };
        assert!(text.contains("the record at 3 does not follow"), "{text}");
    });
}
