//! Publisher and replica with wall clocks of their own, which step at random. Time orders nothing: commits are followed
//! and acknowledged once, whatever the clocks show. Only freshness looks at them, and recovers when they are right.

use super::{
    Case, address, client_setup,
    common::skewed::{Shift, Skewed},
    seeds, server_setup, write,
};
use commonware_runtime::{
    Clock as _, Handle, Network as _, Runner as _, Spawner as _, Supervisor as _, deterministic,
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use syncd::{
    api::WriteRequest,
    client::{self, state::ReplicaState},
    database::{
        Kind,
        types::{DatabaseId, Digest, Family, HashKind, Mode},
    },
    documents::Receipt,
    ledger::Ledger,
    runtime::Runtime as _,
    server::{self, publisher::Source},
};

type Context = Skewed<deterministic::Context>;

/// Seconds that a clock may be off, ahead or back.
const OFFSETS: [i64; 9] = [0, 1, -1, 8, -8, -600, 7200, -7200, 86_400];

struct Server {
    process: Handle<()>,
    ledger: Arc<Ledger<Context>>,
    publisher: server::publisher::Handle,
    database: DatabaseId,
}

async fn spawn_server(context: Context, case: Case, port: u16) -> Server {
    let (tell, told) = tokio::sync::oneshot::channel();
    let process = context.spawn(move |context| async move {
        let listener = context.bind(address(port)).await.unwrap();
        let registry = context.child("syncd");
        let setup = server_setup(case);
        let core =
            server::core::start(context.child("server"), &registry, setup, listener).await.unwrap();
        let parts = (core.ledger.clone(), core.publisher.clone(), core.identity.id);
        assert!(tell.send(parts).is_ok());
        let _core = core;
        std::future::pending::<()>().await;
    });
    let (ledger, publisher, database) = told.await.unwrap();
    Server { process, ledger, publisher, database }
}

async fn spawn_client(
    context: Context,
    case: Case,
    database: DatabaseId,
) -> Arc<ReplicaState<Context>> {
    let (tell, told) = tokio::sync::oneshot::channel();
    context.spawn(move |context| async move {
        let mut setup = client_setup(case, database);
        setup.connector.port = 5000;
        let registry = context.child("syncd");
        let core = client::core::start(context.child("client"), &registry, setup).await.unwrap();
        assert!(tell.send(core.replica.clone()).is_ok());
        let _core = core;
        std::future::pending::<()>().await;
    });
    told.await.unwrap()
}

async fn keyed(publisher: &server::publisher::Handle, case: Case, n: u64) -> Receipt {
    let key = format!("request-{n}").into_bytes();
    let idempotency = Some((key, Digest([7; 32])));
    let request = WriteRequest { changes: vec![write(case, n, n)], idempotency };
    publisher.write(request, Source::Api).await.unwrap()
}

/// Waits for a condition, `seconds` of real time at most.
async fn within(context: &Context, seconds: u64, what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..seconds * 20 {
        if is_so() {
            return;
        }
        context.sleep(Duration::from_millis(50)).await;
    }
    panic!("not within {seconds} s: {what}");
}

fn follows(ledger: &Ledger<Context>, replica: &ReplicaState<Context>) -> bool {
    let wanted = ledger.head().checkpoint;
    replica.head().is_some_and(|head| head.checkpoint.same_state(&wanted))
}

fn stepping_clocks(case: Case, seed: u64) {
    // Far enough from 1970 that a clock can go back.
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let config = deterministic::Config::new()
        .with_seed(seed)
        .with_start_time(start)
        .with_timeout(Some(Duration::from_secs(7200)));
    deterministic::Runner::new(config).start(|mut random| async move {
        let (ours, theirs) = (Shift::default(), Shift::default());
        let relay = super::spawn_relay(&random).await;
        let context =
            |name, shift: &Shift| Skewed { inner: random.child(name), shift: shift.clone() };
        let server = spawn_server(context("server_process", &theirs), case, 4000).await;
        let here = context("client_clock", &ours);
        let replica = spawn_client(context("client_process", &ours), case, server.database).await;
        within(&here, 60, "the first state", || follows(&server.ledger, &replica)).await;
        let reader = context("later_server_process", &theirs);
        let mut step = |shift: &Shift| {
            let random = rand_core::Rng::next_u32(&mut random) as usize;
            shift.set(OFFSETS[random % OFFSETS.len()]);
        };
        let mut receipts = Vec::new();
        for turn in 0..12 {
            step(&theirs);
            if turn % 2 == 0 {
                step(&ours);
            }
            for n in turn * 30..turn * 30 + 30 {
                receipts.push(keyed(&server.publisher, case, n).await);
            }
            // Over the connection that there is, commits are applied whatever their times say.
            within(&here, 30, "the commits", || follows(&server.ledger, &replica)).await;
            here.sleep(Duration::from_secs(turn)).await;
        }
        // Nothing expired, and nothing is executed twice.
        assert_eq!(server.ledger.log().bounds().first, 0);
        for (n, receipt) in receipts.iter().enumerate() {
            let again = keyed(&server.publisher, case, n as u64).await;
            assert_eq!((again.size, again.root), (receipt.size, receipt.root), "request {n}");
        }
        // A publisher that is gone is not fresh, whatever either clock shows or showed.
        let Server { process, ledger, publisher, .. } = server;
        process.abort();
        let _ = process.await;
        let head = ledger.head().checkpoint;
        drop((ledger, publisher));
        step(&ours);
        here.sleep(Duration::from_secs(120)).await;
        for _ in 0..5 {
            step(&ours);
            assert!(replica.lag_seconds(here.moment()) > 0.0);
            assert!(replica.staleness(Duration::from_secs(60), here.moment()).is_some());
            here.sleep(Duration::from_secs(1)).await;
        }
        // It comes back with a wrong clock, which is then set right, as the replica's is.
        step(&theirs);
        let server = spawn_server(reader, case, 4001).await;
        assert!(server.ledger.head().checkpoint.same_state(&head), "a commit is lost");
        relay.switch(address(4001));
        let again = keyed(&server.publisher, case, 0).await;
        assert_eq!((again.size, again.root), (receipts[0].size, receipts[0].root));
        here.sleep(Duration::from_secs(10)).await;
        theirs.set(0);
        ours.set(0);
        within(&here, 30, "the replica is fresh", || {
            follows(&server.ledger, &replica) && replica.lag_seconds(here.moment()) == 0.0
        })
        .await;
        assert_eq!(replica.staleness(Duration::from_secs(60), here.moment()), None);
        assert_eq!(replica.metrics.equivocations.get(), 0);
    });
}

#[test]
fn clocks_that_step_order_nothing() {
    let case = |family, mode| {
        let kind = Kind { family, hash: HashKind::Blake3 };
        Case { kind, mode, storage: Mode::Full }
    };
    for seed in 0..seeds(4) {
        eprintln!("stepping clocks, seed {seed}");
        stepping_clocks(case(Family::Any, Mode::Full), seed);
        stepping_clocks(case(Family::Keyless, Mode::Compact), seed);
    }
}
