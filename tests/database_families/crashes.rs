//! What a crash leaves: a state that was, from which the same commits lead to the same roots.

use super::{
    Context, Local, Shared, go_on_together, kinds, publisher, replica_of_mode, shared, target,
    write,
};
use commonware_runtime::{Runner as _, Supervisor as _, deterministic};
use std::{future::Future, sync::atomic::Ordering};
use syncd::database::{
    self, Database, FetchError, Kind, OpenAt, Place, State, SyncError,
    types::{Family, Mode},
};

/// Every kind in every mode that it has.
fn for_each_mode(test: impl Fn(Kind, Mode)) {
    for kind in kinds() {
        test(kind, Mode::Full);
        if matches!(kind.family, Family::Immutable | Family::Keyless) {
            test(kind, Mode::Compact);
        }
    }
}

/// Runs `first`, loses what was not synced, and runs `second` with what `first` returned.
fn crash_between<T, A, B>(first: impl FnOnce(Context) -> A, second: impl FnOnce(Context, T) -> B)
where
    A: Future<Output = T>,
    B: Future<Output = ()>,
{
    let runner = deterministic::Runner::new(deterministic::Config::new().with_seed(3));
    let (output, checkpoint) = runner.start_and_recover(first);
    deterministic::Runner::from(checkpoint).start(|context| second(context, output));
}

async fn open(context: &Context, kind: Kind, mode: Mode, at: OpenAt) -> Box<dyn Database> {
    database::open(context.child("database"), kind, Place { generation: 1, mode }, at)
        .await
        .unwrap()
}

const SYNCED: u64 = 30;
const WRITTEN: u64 = 34;

/// Writes, of which a part is made durable; everything below the floor is pruned.
async fn write_and_prune(context: Context, kind: Kind, mode: Mode) -> Vec<State> {
    let mut database = open(&context, kind, mode, OpenAt::Latest).await;
    let mut states = Vec::new();
    for batch in 0..WRITTEN {
        if batch == SYNCED {
            let floor = database.state().unwrap().floor;
            database.start_sync().await.unwrap().await.unwrap();
            database.prune(floor).await.unwrap();
        }
        states.push(write(&mut database, kind.family, batch).await);
    }
    states
}

/// Executes again what the crash took.
async fn write_again(database: &mut Box<dyn Database>, kind: Kind, states: &[State]) {
    let found = database.state().unwrap();
    let kept = states.iter().position(|state| *state == found);
    let kept = kept.unwrap_or_else(|| panic!("{kind:?} at {found:?}, which never was"));
    assert!(kept + 1 >= usize::try_from(SYNCED).unwrap(), "{kind:?} lost what was durable");
    for (batch, state) in (0..).zip(states).skip(kept + 1) {
        assert_eq!(write(database, kind.family, batch).await, *state);
    }
}

#[test]
fn what_was_made_durable_survives() {
    for_each_mode(|kind, mode| {
        for cut in [false, true] {
            crash_between(
                |context| write_and_prune(context, kind, mode),
                |context, states| async move {
                    let newest = states.last().unwrap().size;
                    let at = if cut { OpenAt::AtMost(newest) } else { OpenAt::Latest };
                    let mut database = open(&context, kind, mode, at).await;
                    write_again(&mut database, kind, &states).await;
                },
            );
        }
    });
}

#[test]
fn what_a_state_sync_built_survives() {
    for_each_mode(|kind, mode| {
        crash_between(
            |context| async move {
                let mut publisher = publisher(&context, kind, SYNCED).await;
                publisher.sync().await.unwrap();
                let publisher = shared(publisher);
                let replica = replica_of_mode(&context, kind, mode, &publisher, 2).await;
                replica.state().unwrap()
            },
            |context, state| async move {
                let publisher = open(&context, kind, Mode::Full, OpenAt::Latest).await;
                let at = OpenAt::AtMost(state.size);
                let replica = context.child("replica");
                let mut replica =
                    database::open(replica, kind, Place { generation: 2, mode }, at).await.unwrap();
                assert_eq!(replica.state().unwrap(), state, "{kind:?} {mode}");
                let batches = SYNCED..SYNCED + 3;
                go_on_together(&shared(publisher), &mut replica, kind.family, batches).await;
            },
        );
    });
}

/// State sync called off after `fetches` answers, with little in each.
async fn call_off(context: &Context, kind: Kind, mode: Mode, fetches: u64) -> Shared {
    let mut publisher = publisher(context, kind, SYNCED).await;
    publisher.sync().await.unwrap();
    let publisher = shared(publisher);
    let mut target = target(publisher.read().await.state().unwrap());
    target.batch = 10.try_into().unwrap();
    let (source, _) = Local::new(&publisher, 0);
    source.attempts.store(1001 - fetches, Ordering::Relaxed);
    let at = context.child("called_off");
    let built = database::state_sync(at, kind, Place { generation: 2, mode }, target, source).await;
    match built {
        Err(SyncError::Source(FetchError::Cancelled)) => {}
        // The frontier of a compact database is one answer.
        Ok(_) => assert_eq!(mode, Mode::Compact),
        Err(error) => panic!("{error}"),
    }
    publisher
}

/// A newer target is built where the older one was called off.
async fn go_on(context: &Context, kind: Kind, mode: Mode, publisher: Shared) {
    write(&mut *publisher.write().await, kind.family, SYNCED).await;
    let mut replica = replica_of_mode(context, kind, mode, &publisher, 2).await;
    go_on_together(&publisher, &mut replica, kind.family, SYNCED + 1..SYNCED + 4).await;
}

#[test]
fn a_state_sync_that_was_called_off_goes_on_in_its_generation() {
    for_each_mode(|kind, mode| {
        for fetches in [1, 3, 5] {
            super::run(|context| async move {
                let publisher = call_off(&context, kind, mode, fetches).await;
                go_on(&context, kind, mode, publisher).await;
            });
        }
    });
}

#[test]
fn a_state_sync_that_crashed_goes_on_in_its_generation() {
    for_each_mode(|kind, mode| {
        crash_between(
            |context| async move {
                call_off(&context, kind, mode, 5).await;
            },
            |context, ()| async move {
                let publisher = open(&context, kind, Mode::Full, OpenAt::Latest).await;
                go_on(&context, kind, mode, shared(publisher)).await;
            },
        );
    });
}
