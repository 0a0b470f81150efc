//! Every family and hash at the level of the database, in the seeded runtime: what is written is
//! read back, a replica built by state sync goes on as its publisher does, and what was tampered
//! with is refused.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

mod compact;
mod crashes;
mod proofs;
mod vectors;

use bytes::Bytes;
use commonware_runtime::{Runner as _, Supervisor as _, deterministic};
use commonware_utils::sync::AsyncRwLock;
use std::{
    collections::BTreeMap,
    future::Future,
    num::{NonZeroU64, NonZeroUsize},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use syncd::database::{
    self, Database, Error, Exporter, Fetch, FetchError, Fetched, Fetcher, Kind, OpenAt, Place,
    Prepared, Proved, State, StateSync, SyncError,
    record::CommitMetadata,
    types::{Change, Family, HashKind, Mode},
};
use syncd::reads::Name;

type Context = deterministic::Context;
type Shared = Arc<AsyncRwLock<Box<dyn Database>>>;

const BATCHES: u64 = 40;
const WRITES: u64 = 20;
const BYTES: usize = 1 << 20;

fn kinds() -> impl Iterator<Item = Kind> {
    Family::ALL
        .iter()
        .flat_map(|family| HashKind::ALL.iter().map(|hash| Kind { family: *family, hash: *hash }))
}

/// Runs `test` for every kind, each in a runtime of its own.
fn for_each_kind<F: Future<Output = ()>>(test: impl Fn(Context, Kind) -> F) {
    for kind in kinds() {
        println!("{kind:?}");
        run(|context| test(context, kind));
    }
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(Context) -> F) {
    let config =
        deterministic::Config::new().with_seed(7).with_timeout(Some(Duration::from_secs(3600)));
    deterministic::Runner::new(config).start(test);
}

fn put(key: u64, value: u64) -> Change {
    Change::Put { key: key_of(key), value: format!("value {value}").into_bytes() }
}

fn key_of(key: u64) -> Vec<u8> {
    format!("key/{key}").into_bytes()
}

/// The changes of batch `batch`: overwriting and deleting where the family does.
fn changes(family: Family, batch: u64) -> Vec<Change> {
    (0..WRITES)
        .map(|n| {
            let number = batch * WRITES + n;
            match family {
                Family::Any | Family::Current if number % 11 == 10 => {
                    Change::Delete { key: key_of(number * 7 % 97) }
                }
                Family::Any | Family::Current => put(number * 7 % 97, number),
                Family::Immutable => put(number, number),
                Family::Keyless => Change::Append { value: value_of(number) },
            }
        })
        .collect()
}

fn value_of(number: u64) -> Vec<u8> {
    format!("entry {number}").into_bytes()
}

fn metadata(sequence: u64) -> CommitMetadata {
    CommitMetadata { sequence, committed_at_ms: 1_700_000_000_000 + sequence }
}

async fn write(database: &mut Box<dyn Database>, family: Family, batch: u64) -> State {
    let prepared = database.prepare(None, &changes(family, batch), metadata(batch)).await.unwrap();
    let state = prepared.state;
    database.apply(prepared).await.unwrap();
    assert_eq!(database.state().unwrap(), state, "the state is the one foretold");
    state
}

async fn publisher(context: &Context, kind: Kind, batches: u64) -> Box<dyn Database> {
    let mut database = database::open(
        context.child("publisher"),
        kind,
        Place { generation: 1, mode: Mode::Full },
        OpenAt::Latest,
    )
    .await
    .unwrap();
    for batch in 0..batches {
        write(&mut database, kind.family, batch).await;
    }
    database
}

/// Fetches from a database in this process, spoiling the first answers.
struct Local {
    database: Shared,
    spoil: AtomicU64,
    refused: Arc<AtomicU64>,
    attempts: AtomicU64,
}

impl Local {
    fn new(database: &Shared, spoil: u64) -> (Arc<Self>, Arc<AtomicU64>) {
        let refused = Arc::new(AtomicU64::new(0));
        let local = Self {
            database: database.clone(),
            spoil: AtomicU64::new(spoil),
            refused: refused.clone(),
            attempts: AtomicU64::new(0),
        };
        (Arc::new(local), refused)
    }
}

#[async_trait::async_trait]
impl Fetcher for Local {
    async fn fetch(&self, fetch: Fetch) -> Result<Fetched, FetchError> {
        if self.attempts.fetch_add(1, Ordering::Relaxed) > 1000 {
            return Err(FetchError::Cancelled);
        }
        let body = match self.database.read().await.serve(fetch, BYTES).await {
            Ok(served) => served.body,
            Err(Error::Pruned) => return Err(FetchError::Pruned),
            Err(error) => panic!("{fetch:?}: {error}"),
        };
        let left = self.spoil.load(Ordering::Relaxed);
        let body = if left > 0 {
            self.spoil.store(left - 1, Ordering::Relaxed);
            let mut spoiled = body.to_vec();
            let last = spoiled.len() - 1;
            spoiled[last] ^= 1;
            Bytes::from(spoiled)
        } else {
            body
        };
        let refused = self.refused.clone();
        let verdict = Box::new(move |proved| {
            if proved == Proved::Wrong {
                refused.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Fetched { body, verdict })
    }
}

fn target(state: State) -> StateSync {
    StateSync {
        operations_root: state.operations_root,
        floor: state.floor,
        size: state.size,
        batch: NonZeroU64::new(100).unwrap(),
        outstanding: NonZeroUsize::new(4).unwrap(),
    }
}

async fn replica(
    context: &Context,
    kind: Kind,
    publisher: &Shared,
    generation: u64,
) -> Box<dyn Database> {
    replica_of_mode(context, kind, Mode::Full, publisher, generation).await
}

async fn replica_of_mode(
    context: &Context,
    kind: Kind,
    mode: Mode,
    publisher: &Shared,
    generation: u64,
) -> Box<dyn Database> {
    let state = publisher.read().await.state().unwrap();
    let (source, _) = Local::new(publisher, 0);
    let at = context.child("replica");
    let replica = database::state_sync(at, kind, Place { generation, mode }, target(state), source);
    let replica = replica.await.unwrap();
    assert_eq!(replica.state().unwrap(), state, "the canonical root too");
    replica
}

fn shared(database: Box<dyn Database>) -> Shared {
    Arc::new(AsyncRwLock::new(database))
}

/// Executes the same batches on both; the states are equal after each.
async fn go_on_together(
    publisher: &Shared,
    replica: &mut Box<dyn Database>,
    family: Family,
    batches: std::ops::Range<u64>,
) {
    for batch in batches {
        let theirs = write(&mut *publisher.write().await, family, batch).await;
        let ours = write(replica, family, batch).await;
        assert_eq!(ours, theirs, "batch {batch}");
    }
}

#[test]
fn writes_are_read_back_after_reopening() {
    for_each_kind(|context, kind| async move {
        let mut database = publisher(&context, kind, 5).await;
        let state = database.state().unwrap();
        assert_eq!(database.metadata().await.unwrap(), Some(metadata(4)));
        if kind.family == Family::Immutable {
            let value = database.get(&key_of(99)).await.unwrap().unwrap();
            assert_eq!(value, Bytes::from("value 99"));
        }
        database.sync().await.unwrap();
        drop(database);
        let mut database = database::open(
            context.child("again"),
            kind,
            Place { generation: 1, mode: Mode::Full },
            OpenAt::Latest,
        )
        .await
        .unwrap();
        assert_eq!(database.state().unwrap(), state);
        assert_eq!(database.metadata().await.unwrap(), Some(metadata(4)));
        let newer = write(&mut database, kind.family, 5).await;
        assert!(newer.size > state.size);
        database.start_sync().await.unwrap().await.unwrap();
        drop(database);
        // Cut back to the older state, durably.
        let at = OpenAt::AtMost(newer.size - 1);
        let database = database::open(
            context.child("cut"),
            kind,
            Place { generation: 1, mode: Mode::Full },
            at,
        )
        .await
        .unwrap();
        assert_eq!(database.state().unwrap(), state);
    });
}

#[test]
fn batches_stack_on_unapplied_ones() {
    for_each_kind(|context, kind| async move {
        let mut one = publisher(&context, kind, 1).await;
        let mut chain: Vec<Prepared> = Vec::new();
        for batch in 1..6 {
            let changes = changes(kind.family, batch);
            chain.push(one.prepare(chain.last(), &changes, metadata(batch)).await.unwrap());
        }
        one.apply(chain.last().unwrap().clone()).await.unwrap();
        let mut other = database::open(
            context.child("other"),
            kind,
            Place { generation: 2, mode: Mode::Full },
            OpenAt::Latest,
        )
        .await
        .unwrap();
        for batch in 0..6 {
            write(&mut other, kind.family, batch).await;
        }
        assert_eq!(one.state().unwrap(), other.state().unwrap());
        // A batch of a state that is gone is refused, and the handle survives.
        let stale = chain.first().unwrap().clone();
        assert!(one.apply(stale).await.is_err());
        write(&mut one, kind.family, 6).await;
    });
}

#[test]
fn a_state_synced_replica_executes_what_follows() {
    for_each_kind(|context, kind| async move {
        let publisher = shared(publisher(&context, kind, BATCHES).await);
        let mut replica = replica(&context, kind, &publisher, 2).await;
        go_on_together(&publisher, &mut replica, kind.family, BATCHES..BATCHES + 10).await;
        replica.sync().await.unwrap();
        drop(replica);
        let at = OpenAt::Latest;
        let mut replica = database::open(
            context.child("again"),
            kind,
            Place { generation: 2, mode: Mode::Full },
            at,
        )
        .await
        .unwrap();
        go_on_together(&publisher, &mut replica, kind.family, BATCHES + 10..BATCHES + 12).await;
    });
}

#[test]
fn a_boundary_proves_the_nodes_before_it() {
    for_each_kind(|context, kind| async move {
        let mut database = publisher(&context, kind, 3).await;
        let old = database.state().unwrap();
        let new = write(&mut database, kind.family, 3).await;
        let fetch = Fetch::Boundary { size: new.size, start: old.size };
        let body = database.serve(fetch, BYTES).await.unwrap().body;
        let verify = |root, body| syncd::verify::history_at(kind, root, new.size, old.size, body);
        assert!(verify(new.operations_root, body.clone()).unwrap().contains(&old.operations_root));
        assert!(verify(old.operations_root, body.clone()).is_err());
        let mut spoiled = body.to_vec();
        *spoiled.last_mut().unwrap() ^= 1;
        assert!(verify(new.operations_root, spoiled.into()).is_err());
    });
}

#[test]
fn spoiled_answers_are_refused_and_others_taken() {
    for_each_kind(|context, kind| async move {
        let publisher = shared(publisher(&context, kind, 5).await);
        let state = publisher.read().await.state().unwrap();
        let (source, refused) = Local::new(&publisher, 3);
        let at = context.child("replica");
        let replica = database::state_sync(
            at,
            kind,
            Place { generation: 2, mode: Mode::Full },
            target(state),
            source,
        )
        .await
        .unwrap();
        assert_eq!(replica.state().unwrap(), state);
        assert_eq!(refused.load(Ordering::Relaxed), 3);
        // Nothing but spoiled answers never becomes a database.
        let (source, _) = Local::new(&publisher, u64::MAX);
        let at = context.child("spoiled");
        let built = database::state_sync(
            at,
            kind,
            Place { generation: 3, mode: Mode::Full },
            target(state),
            source,
        )
        .await;
        assert!(matches!(built, Err(SyncError::Source(FetchError::Cancelled))));
    });
}

#[test]
fn pruning_keeps_the_state_and_what_is_above_the_floor() {
    for_each_kind(|context, kind| async move {
        let mut database = publisher(&context, kind, BATCHES).await;
        let state = database.state().unwrap();
        let above = database.prune(state.floor + 1).await;
        assert!(matches!(above, Err(Error::OutOfRange(_))), "{above:?}");
        database.prune(state.floor).await.unwrap();
        assert_eq!(database.state().unwrap(), state);
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
        assert_eq!(database.state().unwrap(), state);
        let publisher = shared(database);
        let mut replica = replica(&context, kind, &publisher, 2).await;
        go_on_together(&publisher, &mut replica, kind.family, BATCHES..BATCHES + 3).await;
    });
}

#[test]
fn entries_of_a_log_are_read_by_location() {
    let kind = Kind { family: Family::Keyless, hash: HashKind::Blake3 };
    run(|context| async move {
        let database = publisher(&context, kind, BATCHES).await;
        let size = database.state().unwrap().size;
        assert_eq!(size, 1 + BATCHES * (WRITES + 1), "a first commit, and one for each batch");
        assert!(matches!(database.get(b"key").await, Err(Error::Unsupported(_))));
        let all = NonZeroUsize::MAX;
        let page = database.entries(0, all, usize::MAX).await.unwrap();
        assert_eq!(page.next, size);
        let values: Vec<_> = page.entries.iter().map(|entry| entry.value.clone()).collect();
        let expected: Vec<Bytes> = (0..BATCHES * WRITES).map(|n| value_of(n).into()).collect();
        assert_eq!(values, expected);
        // Operation 0 and each batch's last are commits.
        let locations: Vec<u64> = page.entries.iter().map(|entry| entry.location).collect();
        let expected: Vec<u64> =
            (0..size).filter(|location| location % (WRITES + 1) != 0).collect();
        assert_eq!(locations, expected);
        // Page by page, by count and by bytes, gives the same.
        for (count, bytes) in [(7, usize::MAX), (usize::MAX, 100), (3, 10), (1, 0)] {
            let (mut read, mut from) = (Vec::new(), 0);
            while from < size {
                let count = NonZeroUsize::new(count).unwrap();
                let page = database.entries(from, count, bytes).await.unwrap();
                assert!(page.entries.len() <= count.get() && page.next > from);
                let total: usize = page.entries.iter().map(|entry| entry.value.len()).sum();
                assert!(total <= bytes || page.entries.len() == 1);
                read.extend(page.entries);
                from = page.next;
            }
            assert_eq!(read, database.entries(0, all, usize::MAX).await.unwrap().entries);
        }
        // An export is all of it, in order.
        let database = shared(database);
        let mut exporter = Exporter::new(database.clone(), Family::Keyless, size, 0);
        let mut exported = Vec::new();
        while let Some(page) = exporter.next().await.unwrap() {
            exported.extend(page);
        }
        let everything = database.read().await.entries(0, all, usize::MAX).await.unwrap().entries;
        assert_eq!(exported.len(), everything.len());
        for (exported, entry) in exported.iter().zip(&everything) {
            assert_eq!(exported.name, Name::Location(entry.location));
            assert_eq!(exported.value, entry.value);
        }
        let mut database = database.write().await;
        let end = database.entries(size, all, usize::MAX).await.unwrap();
        assert!(end.entries.is_empty() && end.next == size);
        let beyond = database.entries(size + 1, all, usize::MAX).await;
        assert!(matches!(beyond, Err(Error::OutOfRange(_))));
        // A run of commits without entries ends a page, and the next goes on.
        for sequence in 0..5000 {
            let empty = database.prepare(None, &[], metadata(sequence)).await.unwrap();
            database.apply(empty).await.unwrap();
        }
        let page = database.entries(size, all, usize::MAX).await.unwrap();
        assert!(page.entries.is_empty() && page.next > size);
        assert!(page.next < database.state().unwrap().size);
    });
}

#[test]
fn current_has_a_canonical_root_of_its_own() {
    let kind = Kind { family: Family::Current, hash: HashKind::Sha256 };
    run(|context| async move {
        let mut database = publisher(&context, kind, 0).await;
        for batch in 0..BATCHES {
            let state = write(&mut database, kind.family, batch).await;
            assert_ne!(state.root, state.operations_root);
            assert!(state.floor % 256 == 0 && state.floor < state.size);
        }
        assert!(database.state().unwrap().floor > 0, "the floor moved over a chunk");
    });
}

#[test]
fn an_export_is_what_the_writes_add_up_to() {
    for family in [Family::Any, Family::Current, Family::Immutable] {
        let kind = Kind { family, hash: HashKind::Blake3 };
        run(|context| async move {
            let database = publisher(&context, kind, BATCHES).await;
            let mut expected = BTreeMap::new();
            for change in (0..BATCHES).flat_map(|batch| changes(family, batch)) {
                match change {
                    Change::Put { key, value } => expected.insert(key, value),
                    Change::Delete { key } => expected.remove(&key),
                    Change::Append { .. } => unreachable!("no family of keys appends"),
                };
            }
            for (key, value) in &expected {
                assert_eq!(database.get(key).await.unwrap().unwrap(), *value);
            }
            let state = database.state().unwrap();
            let mut exporter =
                Exporter::new(shared(database), kind.family, state.size, state.floor);
            let mut found = BTreeMap::new();
            while let Some(entries) = exporter.next().await.unwrap() {
                for entry in entries {
                    let Name::Key(key) = &entry.name else { panic!("{entry:?}") };
                    let (key, value) = (key.to_vec(), entry.value.to_vec());
                    assert_eq!(found.insert(key, value), None, "each key once");
                }
            }
            assert_eq!(found, expected);
        });
    }
}

#[test]
fn empty_and_emptied_databases_are_synced() {
    for_each_kind(|context, kind| async move {
        let publisher = shared(publisher(&context, kind, 0).await);
        let mut fresh = replica(&context, kind, &publisher, 2).await;
        go_on_together(&publisher, &mut fresh, kind.family, 0..2).await;
        if !matches!(kind.family, Family::Any | Family::Current) {
            return;
        }
        let deletes: Vec<_> = (0..97).map(|key| Change::Delete { key: key_of(key) }).collect();
        let mut database = publisher.write().await;
        let prepared = database.prepare(None, &deletes, metadata(2)).await.unwrap();
        database.apply(prepared).await.unwrap();
        drop(database);
        let mut emptied = replica(&context, kind, &publisher, 3).await;
        assert_eq!(emptied.get(&key_of(1)).await.unwrap(), None);
        go_on_together(&publisher, &mut emptied, kind.family, 3..5).await;
    });
}

/// Enough overwrites that whole files lie below the floor.
#[test]
fn whole_files_are_pruned() {
    for family in [Family::Any, Family::Current] {
        let kind = Kind { family, hash: HashKind::Blake3 };
        run(|context| async move {
            let mut database = publisher(&context, kind, 0).await;
            for batch in 0..45 {
                let changes: Vec<_> = (0..1000).map(|n| put(n % 100, batch * 1000 + n)).collect();
                let changes = &changes[..if batch < 44 { 1000 } else { 10 }];
                let mut parts = Vec::new();
                // A batch keeps the last write of a key only.
                for part in changes.chunks(100) {
                    let parent = parts.last();
                    let next = database.prepare(parent, part, metadata(batch)).await.unwrap();
                    parts.push(next);
                }
                database.apply(parts.last().unwrap().clone()).await.unwrap();
            }
            let state = database.state().unwrap();
            database.prune(state.floor).await.unwrap();
            let from = database.retained_from().unwrap();
            assert!(from >= 32_768, "{from} of {state:?}");
            assert_eq!(database.state().unwrap(), state);
            let fetch = Fetch::Boundary { size: state.size, start: from - 1 };
            assert!(matches!(database.serve(fetch, BYTES).await, Err(Error::Pruned)));
            let proof = database.prove_operation(from - 1, state.size).await;
            assert!(matches!(proof, Err(Error::Pruned)));
            database.sync().await.unwrap();
            drop(database);
            let at = OpenAt::AtMost(state.size);
            let database = database::open(
                context.child("again"),
                kind,
                Place { generation: 1, mode: Mode::Full },
                at,
            )
            .await
            .unwrap();
            assert_eq!(database.state().unwrap(), state);
            let publisher = shared(database);
            let mut replica = replica(&context, kind, &publisher, 2).await;
            assert!(replica.retained_from().unwrap() >= 32_768);
            go_on_together(&publisher, &mut replica, kind.family, 0..5).await;
            assert_eq!(replica.get(&key_of(3)).await.unwrap(), {
                publisher.read().await.get(&key_of(3)).await.unwrap()
            });
        });
    }
}

#[test]
fn changes_that_a_family_does_not_have_are_refused() {
    for_each_kind(|context, kind| async move {
        let mut database = publisher(&context, kind, 1).await;
        let append = Change::Append { value: vec![1] };
        let delete = Change::Delete { key: key_of(1) };
        let wrong = match kind.family {
            Family::Any | Family::Current => vec![append],
            Family::Immutable => vec![append, delete],
            Family::Keyless => vec![put(1, 1), delete],
        };
        for change in wrong {
            let refused = database.prepare(None, &[change], metadata(1)).await;
            assert!(matches!(refused, Err(Error::Unsupported(_))));
        }
        write(&mut database, kind.family, 1).await;
    });
}
