//! Compact storage stays small, however long the history is.

use super::files;
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use commonware_runtime::{Supervisor as _, tokio::Context};
use std::{path::Path, time::Duration};
use syncd::{
    checkpoint::Checkpoint,
    commit_log::{Commit, Retention},
    database::{
        self, Kind, OpenAt, Place,
        record::CommitMetadata,
        types::{Change, Digest, Family, HashKind, Mode},
    },
    ledger::{History, Ledger},
};

const PLACE: Place = Place { generation: 0, mode: Mode::Compact };
const KIND: Kind = Kind { family: Family::Keyless, hash: HashKind::Blake3 };

async fn create(context: &Context) -> Ledger<Context> {
    let database = database::open(context.child("database"), KIND, PLACE, OpenAt::Latest);
    let database = database.await.unwrap();
    let state = database.state().unwrap();
    let base = Checkpoint {
        database: Digest([1; 32]),
        family: KIND.family,
        hash: KIND.hash,
        sequence: 0,
        floor: state.floor,
        size: state.size,
        root: state.root,
        operations_root: state.operations_root,
        committed_at_ms: 0,
        signed_at_ms: 0,
    };
    let base = base.sign(&PrivateKey::from_seed(1));
    Ledger::create(context, PLACE, database, base).await.unwrap()
}

async fn commit(ledger: &Ledger<Context>, at_ms: u64) {
    let head = ledger.head().checkpoint;
    let metadata = CommitMetadata { sequence: head.sequence + 1, committed_at_ms: at_ms };
    let changes = vec![Change::Append { value: vec![7; 40] }];
    let prepared = ledger.prepare(&changes, metadata).await.unwrap();
    let key = PrivateKey::from_seed(1);
    let (state, none) = (prepared.state, Vec::new());
    let commit = Commit::following(head, state, metadata, changes, none, at_ms, &key);
    ledger.commit(&[commit], prepared).await.unwrap();
}

/// Commits, with a log that keeps what `log` says.
async fn grow(context: &Context, directory: &Path, log: Retention) {
    let history = History { log, operations: None };
    let ledger = create(context).await;
    let mut most = 0;
    for number in 1..=COMMITS {
        commit(&ledger, u64::from(number)).await;
        if number % 50 == 0 {
            ledger.maintain(history).await.unwrap();
            let bytes: usize = files(directory).values().map(Vec::len).sum();
            most = most.max(bytes);
        }
    }
    assert!(most < BYTES_MAX, "{most} bytes after {COMMITS} commits, {log:?}");
    // Not stopped in order: opened at the log's last record all the same.
    let head = ledger.head();
    ledger.close().await;
    drop(ledger);
    let opened = Ledger::open(context, PLACE, true, |_| {}).await.unwrap().unwrap();
    assert_eq!(opened.head(), head);
    opened.close().await;
}

const COMMITS: u32 = 12_000;
/// What README and LIMITS promise.
const BYTES_MAX: usize = 1_000_000;

#[test]
fn compact_storage_stays_small_with_an_old_log() {
    bounded(Retention { age: Duration::from_millis(50), bytes: 1 << 30, segments: usize::MAX });
}

/// As with commits so rare that the log never has many.
#[test]
fn compact_storage_stays_small_with_a_short_log() {
    bounded(Retention { age: Duration::from_secs(3600), bytes: 300_000, segments: usize::MAX });
}

fn bounded(log: Retention) {
    // The speed of the disk is not what is looked at.
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    let directory = tempfile::tempdir_in(place).unwrap();
    let data = directory.path().join("data");
    syncd::daemon::run_on_runtime(directory.path(), |context| async move {
        grow(&context, &data, log).await;
        Ok(())
    })
    .unwrap();
}
