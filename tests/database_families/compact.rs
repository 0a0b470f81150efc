//! Mode `compact`: the roots of a full database without its operations.

use super::{
    BATCHES, BYTES, Context, Local, Shared, changes, go_on_together, key_of, metadata, publisher,
    replica_of_mode, run, shared, target, write,
};
use commonware_runtime::{Storage as _, Supervisor as _};
use std::{
    future::Future,
    num::{NonZeroU64, NonZeroUsize},
    sync::atomic::Ordering,
};
use syncd::database::{
    self, Database, Error, Fetch, FetchError, Generations, Kind, OpenAt, Operation, Place, State,
    SyncError, partitions,
    types::{Family, HashKind, Mode},
};
use syncd::verify::{history_at, verify_operation};

fn for_each_compact_kind<F: Future<Output = ()>>(test: impl Fn(Context, Kind) -> F) {
    for family in [Family::Immutable, Family::Keyless] {
        for hash in HashKind::ALL {
            run(|context| test(context, Kind { family, hash: *hash }));
        }
    }
}

async fn open(context: &Context, kind: Kind, generation: u64, at: OpenAt) -> Box<dyn Database> {
    let context = context.child("compact");
    database::open(context, kind, Place { generation, mode: Mode::Compact }, at).await.unwrap()
}

async fn compact_replica(context: &Context, kind: Kind, publisher: &Shared) -> Box<dyn Database> {
    replica_of_mode(context, kind, Mode::Compact, publisher, 2).await
}

#[test]
fn a_compact_database_has_the_roots_of_a_full_one() {
    for_each_compact_kind(|context, kind| async move {
        let full = shared(publisher(&context, kind, 0).await);
        let mut compact = open(&context, kind, 2, OpenAt::Latest).await;
        assert_eq!(compact.state().unwrap(), full.read().await.state().unwrap());
        assert_eq!(compact.metadata().await.unwrap(), None);
        go_on_together(&full, &mut compact, kind.family, 0..BATCHES).await;
        // Batches stack on unapplied ones as well.
        let mut chain = Vec::new();
        for batch in BATCHES..BATCHES + 3 {
            write(&mut *full.write().await, kind.family, batch).await;
            let changes = changes(kind.family, batch);
            let next = compact.prepare(chain.last(), &changes, metadata(batch)).await.unwrap();
            chain.push(next);
        }
        compact.apply(chain.last().unwrap().clone()).await.unwrap();
        assert_eq!(compact.state().unwrap(), full.read().await.state().unwrap());
        assert!(compact.apply(chain[0].clone()).await.is_err(), "stale, and the handle survives");
        assert_eq!(compact.metadata().await.unwrap(), Some(metadata(BATCHES + 2)));
    });
}

#[test]
fn a_compact_database_is_reopened_and_cut_back() {
    for_each_compact_kind(|context, kind| async move {
        let mut compact = open(&context, kind, 2, OpenAt::Latest).await;
        let mut states: Vec<State> = Vec::new();
        for batch in 0..10 {
            states.push(write(&mut compact, kind.family, batch).await);
        }
        compact.start_sync().await.unwrap().await.unwrap();
        drop(compact);
        let compact = open(&context, kind, 2, OpenAt::Latest).await;
        assert_eq!(compact.state().unwrap(), states[9]);
        assert_eq!(compact.metadata().await.unwrap(), Some(metadata(9)));
        drop(compact);
        let at = OpenAt::AtMost(states[5].size - 1);
        let mut compact = open(&context, kind, 2, at).await;
        assert_eq!(compact.state().unwrap(), states[4]);
        assert_eq!(write(&mut compact, kind.family, 5).await, states[5]);
        compact.sync().await.unwrap();
        drop(compact);
        let compact = open(&context, kind, 2, OpenAt::Latest).await;
        assert_eq!(compact.state().unwrap(), states[5]);
    });
}

#[test]
fn a_compact_replica_is_built_from_a_full_and_from_a_compact_database() {
    for_each_compact_kind(|context, kind| async move {
        let full = shared(publisher(&context, kind, BATCHES).await);
        let mut one = compact_replica(&context, kind, &full).await;
        go_on_together(&full, &mut one, kind.family, BATCHES..BATCHES + 5).await;
        // What it was built from is on disk.
        one.sync().await.unwrap();
        drop(one);
        let one = shared(open(&context, kind, 2, OpenAt::Latest).await);
        assert_eq!(one.read().await.state().unwrap(), full.read().await.state().unwrap());
        let mut two = replica_of_mode(&context, kind, Mode::Compact, &one, 3).await;
        go_on_together(&full, &mut two, kind.family, BATCHES + 5..BATCHES + 7).await;
    });
}

#[test]
fn a_compact_replica_is_built_of_a_state_just_past() {
    for_each_compact_kind(|context, kind| async move {
        let mut compact = open(&context, kind, 1, OpenAt::Latest).await;
        write(&mut compact, kind.family, 0).await;
        let past = write(&mut compact, kind.family, 1).await;
        write(&mut compact, kind.family, 2).await;
        let (source, _) = Local::new(&shared(compact), 0);
        let at = context.child("past");
        let replica = database::state_sync(
            at,
            kind,
            Place { generation: 2, mode: Mode::Compact },
            target(past),
            source,
        );
        assert_eq!(replica.await.unwrap().state().unwrap(), past);
    });
}

#[test]
fn spoiled_answers_do_not_become_a_compact_database() {
    for_each_compact_kind(|context, kind| async move {
        let full = shared(publisher(&context, kind, 3).await);
        let state = full.read().await.state().unwrap();
        let (source, refused) = Local::new(&full, 1);
        let at = context.child("once");
        let replica = database::state_sync(
            at,
            kind,
            Place { generation: 2, mode: Mode::Compact },
            target(state),
            source,
        );
        assert_eq!(replica.await.unwrap().state().unwrap(), state);
        assert_eq!(refused.load(Ordering::Relaxed), 1);
        let (source, _) = Local::new(&full, u64::MAX);
        let at = context.child("always");
        let built = database::state_sync(
            at,
            kind,
            Place { generation: 3, mode: Mode::Compact },
            target(state),
            source,
        )
        .await;
        assert!(matches!(built, Err(SyncError::Source(FetchError::Cancelled))));
        // Nothing of it was stored: the generation is as new.
        let fresh = open(&context, kind, 3, OpenAt::Latest).await;
        assert_eq!(fresh.state().unwrap().size, 1);
    });
}

#[test]
fn what_a_compact_database_does_not_hold_is_refused_by_name() {
    for_each_compact_kind(|context, kind| async move {
        let full = shared(publisher(&context, kind, 3).await);
        let mut compact = compact_replica(&context, kind, &full).await;
        let old = compact.state().unwrap();
        write(&mut *full.write().await, kind.family, 3).await;
        let state = write(&mut compact, kind.family, 3).await;
        let unsupported = |error| assert!(matches!(error, Error::Unsupported(_)), "{error}");
        unsupported(compact.get(&key_of(1)).await.unwrap_err());
        let all = NonZeroUsize::MAX;
        unsupported(compact.entries(0, all, BYTES).await.unwrap_err());
        unsupported(compact.prove_key(&key_of(1)).await.unwrap_err());
        let pruned = |error| assert!(matches!(error, Error::Pruned), "{error}");
        let max = NonZeroU64::new(10).unwrap();
        pruned(compact.operations(state.size, 0, max).await.unwrap_err());
        pruned(compact.prove_operation(0, state.size).await.unwrap_err());
        for fetch in [
            Fetch::Operations { size: state.size, start: 0, max },
            Fetch::Boundary { size: state.size, start: old.size },
            Fetch::Boundary { size: state.size - 1, start: state.size - 2 },
        ] {
            pruned(compact.serve(fetch, BYTES).await.unwrap_err());
        }
        let beyond = Fetch::Boundary { size: state.size + 1, start: state.size };
        let beyond = compact.serve(beyond, BYTES).await;
        assert!(matches!(beyond, Err(Error::OutOfRange(_))));
        // What it holds, it proves as a full one does.
        let last = state.size - 1;
        let proof = compact.prove_operation(last, state.size).await.unwrap();
        let root = state.operations_root;
        let found = verify_operation(kind, root, state.size, last, proof).unwrap();
        assert_eq!(found, Operation::Commit(Some(metadata(3))));
        // A full replica is not built from it, and says why.
        let (source, _) = Local::new(&shared(compact), 0);
        let at = context.child("full");
        let built = database::state_sync(
            at,
            kind,
            Place { generation: 3, mode: Mode::Full },
            target(state),
            source,
        )
        .await;
        assert!(matches!(built, Err(SyncError::Source(FetchError::Pruned))));
    });
}

#[test]
fn a_full_database_proves_that_it_continues_a_compact_one() {
    for_each_compact_kind(|context, kind| async move {
        let full = shared(publisher(&context, kind, 4).await);
        let compact = compact_replica(&context, kind, &full).await;
        let ours = compact.state().unwrap();
        let newer = write(&mut *full.write().await, kind.family, 4).await;
        for start in [ours.size, ours.size - 1] {
            let fetch = Fetch::Boundary { size: newer.size, start };
            let body = full.read().await.serve(fetch, BYTES).await.unwrap().body;
            let roots = history_at(kind, newer.operations_root, newer.size, start, body).unwrap();
            assert_eq!(roots.contains(&ours.operations_root), start == ours.size);
        }
    });
}

#[test]
fn old_states_of_a_compact_database_are_pruned() {
    for_each_compact_kind(|context, kind| async move {
        let mut compact = open(&context, kind, 2, OpenAt::Latest).await;
        let mut states: Vec<State> = Vec::new();
        for batch in 0..600 {
            states.push(write(&mut compact, kind.family, batch).await);
        }
        let newest = states[599];
        let boundary = |state: State| Fetch::Boundary { size: state.size, start: state.size - 1 };
        assert!(compact.serve(boundary(states[0]), BYTES).await.is_ok());
        let above = compact.prune(newest.size + 1).await;
        assert!(matches!(above, Err(Error::OutOfRange(_))));
        assert_eq!(compact.retained_from().unwrap(), 0);
        compact.prune(states[550].size).await.unwrap();
        assert_eq!(compact.retained_from().unwrap(), states[550].size);
        assert!(matches!(compact.serve(boundary(states[0]), BYTES).await, Err(Error::Pruned)));
        assert!(compact.serve(boundary(states[550]), BYTES).await.is_ok());
        assert_eq!(compact.state().unwrap(), newest);
        compact.prune(newest.size).await.unwrap();
        drop(compact);
        let mut compact = open(&context, kind, 2, OpenAt::Latest).await;
        assert_eq!(compact.state().unwrap(), newest);
        write(&mut compact, kind.family, 600).await;
    });
}

#[test]
fn families_whose_keys_change_have_no_compact_mode() {
    for family in [Family::Any, Family::Current] {
        run(|context| async move {
            let kind = Kind { family, hash: HashKind::Blake3 };
            let at = context.child("compact");
            let opened = database::open(
                at,
                kind,
                Place { generation: 1, mode: Mode::Compact },
                OpenAt::Latest,
            )
            .await;
            assert!(matches!(opened, Err(Error::Unsupported(_))));
            let full = shared(publisher(&context, kind, 1).await);
            let state = full.read().await.state().unwrap();
            let (source, _) = Local::new(&full, 0);
            let at = context.child("synced");
            let built = database::state_sync(
                at,
                kind,
                Place { generation: 2, mode: Mode::Compact },
                target(state),
                source,
            );
            let built = built.await;
            assert!(matches!(built, Err(SyncError::Database(Error::Unsupported(_)))));
        });
    }
}

/// Every partition that a database makes is removed with its generation.
#[test]
fn a_removed_generation_leaves_nothing() {
    let all = Family::ALL.iter().map(|family| (*family, Mode::Full));
    let compact = [(Family::Immutable, Mode::Compact), (Family::Keyless, Mode::Compact)];
    for (family, mode) in all.chain(compact) {
        run(|context| async move {
            let kind = Kind { family, hash: HashKind::Blake3 };
            let at = context.child("first");
            let mut database =
                database::open(at, kind, Place { generation: 1, mode }, OpenAt::Latest)
                    .await
                    .unwrap();
            for batch in 0..3 {
                write(&mut database, family, batch).await;
            }
            database.sync().await.unwrap();
            drop(database);
            let mut there = Vec::new();
            for partition in partitions(family, 1) {
                if context.scan(&partition).await.is_ok() {
                    there.push(partition);
                }
            }
            let expected = match (mode, family) {
                (Mode::Compact, _) => 3,
                (Mode::Full, Family::Current) => 7,
                (Mode::Full, _) => 6,
            };
            assert_eq!(there.len(), expected, "{family} {mode} {there:?}");
            Generations::remove(&context, family, 1).await.unwrap();
            let at = context.child("second");
            let database = database::open(at, kind, Place { generation: 1, mode }, OpenAt::Latest)
                .await
                .unwrap();
            assert_eq!(database.state().unwrap().size, 1);
        });
    }
}
