//! The real server and client in the seeded runtime: same code, simulated clock, disk and network.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod clocks;
#[path = "../common/mod.rs"]
mod common;
mod forks;
mod machine;
mod model;
mod records;
mod story;

use bytes::Bytes;
use common::relay::{Act, FromServer, Relay, honest};
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use commonware_runtime::{
    Clock as _, Network as _, Runner as _, Spawner as _, Supervisor as _, deterministic,
};
use std::{
    collections::HashSet,
    num::{NonZeroU64, NonZeroUsize},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use syncd::{
    api::WriteRequest,
    checkpoint::{Parameters, Policy},
    client,
    commit_log::Retention,
    database::{
        Kind, Operation,
        types::{Change, DatabaseId, Family, HashKind, Mode},
    },
    ledger::{History, Ledger},
    link::Connector,
    replicate::state_sync,
    runtime::Runtime,
    serve::limits::Limits,
    server::{self, publisher::Source},
};

const HISTORY: History = History {
    log: Retention { age: Duration::from_secs(3600), bytes: 1 << 30, segments: usize::MAX },
    operations: None,
};

/// What a run is about: family and hash, what the replica keeps, what the server keeps.
#[derive(Clone, Copy)]
struct Case {
    kind: Kind,
    mode: Mode,
    storage: Mode,
}

impl std::ops::Deref for Case {
    type Target = Kind;

    fn deref(&self) -> &Kind {
        &self.kind
    }
}

impl From<Kind> for Case {
    fn from(kind: Kind) -> Self {
        Self { kind, mode: Mode::Full, storage: Mode::Full }
    }
}

fn server_setup(kind: Case) -> server::core::Setup {
    server::core::Setup {
        identity: PrivateKey::from_seed(1),
        publisher: PrivateKey::from_seed(2),
        kind: kind.kind,
        mode: kind.storage,
        storage: kind.storage,
        hash_is_chosen: true,
        initial_operations: 100,
        generator: server::core::Generator {
            interval: Duration::from_millis(100),
            changes: 0,
            is_chosen: true,
        },
        history: HISTORY,
        heartbeat_interval: Duration::from_secs(5),
        queue_requests_max: 1024,
        authorized: Arc::new(syncd::watch::Sender::new(None)),
        limits: Limits {
            handshakes: 64,
            handshakes_per_address: 64,
            connections: 64,
            connections_per_address: 64,
            handshakes_per_second: 1000,
            requests_per_second: 100_000,
            bytes_per_second: None,
        },
        guard: syncd::runtime::unguarded(),
    }
}

/// A disk that has no room now and then, for as long as one look at it.
fn sometimes_full() -> syncd::runtime::StorageRoom {
    let looks = AtomicU64::new(0);
    Arc::new(move |_| match looks.fetch_add(1, Ordering::Relaxed) % 101 {
        100 => Err("the simulated disk is full".into()),
        _ => Ok(()),
    })
}

fn client_setup(kind: Case, database: syncd::database::types::DatabaseId) -> client::core::Setup {
    client::core::Setup {
        connector: Connector {
            host: "127.0.0.1".into(),
            port: 4000,
            server: PrivateKey::from_seed(1).public_key(),
            identity: PrivateKey::from_seed(3),
            skew: Duration::from_secs(10),
        },
        policy: Policy {
            publishers: vec![PrivateKey::from_seed(2).public_key()],
            database,
            family: kind.family,
            rotations: syncd::checkpoint::Rotations::default(),
        },
        sync: client::sync_loop::Config {
            pace: client::sync_loop::Pace {
                push: true,
                sync_interval: Duration::from_secs(10),
                target_update_interval: Duration::from_secs(1),
            },
            state_sync: state_sync::Config {
                batch: NonZeroU64::new(100).unwrap(),
                outstanding: NonZeroUsize::new(8).unwrap(),
                mode: kind.mode,
            },
            age_max: Duration::from_secs(60),
            skew: Duration::from_secs(10),
            history: HISTORY,
        },
        directory: std::env::temp_dir(),
        guard: syncd::runtime::unguarded(),
        room: sometimes_full(),
    }
}

/// A write of `value`; under a key, where the family has keys.
fn write(kind: Case, key: u64, value: u64) -> Change {
    let value = value.to_be_bytes().to_vec();
    match kind.family {
        Family::Keyless => Change::Append { value },
        _ => Change::Put { key: format!("key/{key}").into_bytes(), value },
    }
}

type Context = deterministic::Context;

/// The values that were appended, from the operation `from` on.
async fn appended<E: Runtime>(ledger: &Ledger<E>, mut from: u64) -> Vec<Bytes> {
    let (size, mut values) = (ledger.head().checkpoint.size, Vec::new());
    while from < size {
        let max = NonZeroU64::new(500).unwrap();
        let (_, operations) = ledger.operations(from, max).await.unwrap();
        from += operations.len() as u64;
        values.extend(operations.into_iter().filter_map(|operation| match operation {
            Operation::Append { value } => Some(value),
            _ => None,
        }));
    }
    values
}

/// Whether `key` holds `least` or what was written later; of a log of values, whether it is there.
struct Reader<'a> {
    ledger: &'a Ledger<Context>,
    values: Option<HashSet<u64>>,
}

impl<'a> Reader<'a> {
    async fn new(ledger: &'a Ledger<Context>) -> Self {
        if ledger.kind().family != Family::Keyless || ledger.mode() == Mode::Compact {
            return Self { ledger, values: None };
        }
        let values = appended(ledger, 0).await;
        // Generated values are longer.
        let ours = values.iter().filter_map(|value| value.as_ref().try_into().ok());
        Self { ledger, values: Some(ours.map(u64::from_be_bytes).collect()) }
    }

    async fn check(&self, key: u64, least: u64) {
        if self.ledger.mode() == Mode::Compact {
            // It holds no values; that its root is the publisher's was compared.
            return;
        }
        if let Some(values) = &self.values {
            assert!(values.contains(&least), "{least} is lost");
            return;
        }
        let (_, value) = self.ledger.get(format!("key/{key}").as_bytes()).await.unwrap();
        let value = value.unwrap_or_else(|| panic!("key {key} is lost"));
        let found = u64::from_be_bytes(value.as_ref().try_into().unwrap());
        // A later write may have been committed without its answer being seen.
        assert!(found >= least, "key {key}: acknowledged {least}, found {found}");
    }
}

async fn wait_equal(
    context: &deterministic::Context,
    server: &server::core::Core<deterministic::Context>,
    client: &client::core::Core<deterministic::Context>,
) {
    for _ in 0..10_000 {
        let wanted = server.ledger.head().checkpoint;
        if client.replica.head().is_some_and(|head| head.checkpoint.same_state(&wanted)) {
            return;
        }
        context.sleep(Duration::from_millis(10)).await;
    }
    panic!(
        "not equal: server {:?}, client {:?}, status {:?}",
        server.ledger.head().checkpoint,
        client.replica.head().map(|head| head.checkpoint),
        client.replica.status(context.moment())
    );
}

fn publish_sync_follow(kind: Case, seed: u64) {
    let runner = deterministic::Runner::new(
        deterministic::Config::new().with_seed(seed).with_timeout(Some(Duration::from_secs(600))),
    );
    runner.start(|context| async move {
        let listener = context.bind("127.0.0.1:4000".parse().unwrap()).await.unwrap();
        let server = server::core::start(
            context.child("server"),
            &context.child("syncd"),
            server_setup(kind),
            listener,
        )
        .await
        .unwrap();
        let client = client::core::start(
            context.child("client"),
            &context.child("syncd"),
            client_setup(kind, server.identity.id),
        )
        .await
        .unwrap();
        wait_equal(&context, &server, &client).await;
        for i in 0..200u64 {
            let request = WriteRequest {
                changes: (0..5).map(|j| write(kind, i * 5 + j, i)).collect(),
                idempotency: None,
            };
            server.publisher.write(request, Source::Api).await.unwrap();
        }
        wait_equal(&context, &server, &client).await;
        let replica = client.replica.ledger.load_full().unwrap();
        Reader::new(&replica).await.check(7, 1).await;
        client.drain().await.unwrap();
        server.drain().await.unwrap();
    });
}

/// What survived so far: the last acknowledged value of each key.
type Acknowledged = Arc<std::sync::Mutex<std::collections::BTreeMap<u64, u64>>>;

/// One life of both processes: everything is started, checked, written to, and cut off at a random
/// moment. Whatever was not synced by then is lost with the crash.
async fn live_and_crash(
    mut context: deterministic::Context,
    kind: Case,
    life: u64,
    acknowledged: Acknowledged,
) {
    let listener = context.bind("127.0.0.1:4000".parse().unwrap()).await.unwrap();
    let registry = context.child("syncd");
    let server =
        server::core::start(context.child("server"), &registry, server_setup(kind), listener)
            .await
            .unwrap();
    let setup = client_setup(kind, server.identity.id);
    let client = client::core::start(context.child("client"), &registry, setup).await.unwrap();
    // The replica opened at a state that the server's log leads through.
    if let Some(head) = client.replica.head() {
        let commit = server.ledger.log().read(head.checkpoint.sequence).await.unwrap();
        assert!(commit.checkpoint.checkpoint.same_state(&head.checkpoint), "life {life}");
    }
    check_acknowledged(&server.ledger, &acknowledged).await;
    wait_equal(&context, &server, &client).await;
    check_acknowledged(&client.replica.ledger.load_full().unwrap(), &acknowledged).await;
    for writer in 0..3 {
        let (publisher, acknowledged) = (server.publisher.clone(), acknowledged.clone());
        context.child("writer").spawn(move |context| async move {
            for n in 0u64.. {
                // Immutable keys are new each time; the others are overwritten over and over.
                let unique = life * 1_000_000 + writer * 100_000 + n;
                let overwrites = matches!(kind.family, Family::Any | Family::Current);
                let key = if overwrites { writer * 10 + n % 10 } else { unique };
                let request =
                    WriteRequest { changes: vec![write(kind, key, unique)], idempotency: None };
                // The crash ends the publisher under its writers.
                let Ok(_) = publisher.write(request, Source::Api).await else { return };
                acknowledged.lock().unwrap().insert(key, unique);
                context.sleep(Duration::from_millis(1 + n % 7)).await;
            }
        });
    }
    let random = u64::from(rand_core::Rng::next_u32(&mut context));
    context.sleep(Duration::from_millis(20 + random % 3000)).await;
}

async fn check_acknowledged(ledger: &Ledger<Context>, acknowledged: &Acknowledged) {
    let expected = acknowledged.lock().unwrap().clone();
    let reader = Reader::new(ledger).await;
    for (key, least) in expected {
        reader.check(key, least).await;
    }
}

/// Lives of both processes, each ended by a crash of everything, and an end in order.
fn crash_and_recover(kind: Case, seed: u64) {
    let acknowledged = Acknowledged::default();
    let config = deterministic::Config::new().with_seed(seed);
    let mut runner = deterministic::Runner::new(config);
    for life in 0..4 {
        let acknowledged = acknowledged.clone();
        let (_, checkpoint) = runner.start_and_recover(|context| async move {
            live_and_crash(context, kind, life, acknowledged).await;
        });
        runner = deterministic::Runner::from(checkpoint);
    }
    assert!(acknowledged.lock().unwrap().len() > 10, "nothing was written");
}

fn address(port: u16) -> std::net::SocketAddr {
    std::net::SocketAddr::from(([127, 0, 0, 1], port))
}

async fn spawn_relay(context: &deterministic::Context) -> Relay {
    let listener = context.bind(address(5000)).await.unwrap();
    let identity = PrivateKey::from_seed(1);
    Relay::spawn(context.child("relay"), listener, address(4000), identity)
}

/// A process of its own: ending it drops everything that it had in memory.
struct Process<T> {
    handle: commonware_runtime::Handle<()>,
    /// What the test uses of it.
    parts: T,
}

type ServerParts = (Arc<Ledger<Context>>, server::publisher::Handle, DatabaseId);
type ClientParts = Arc<client::state::ReplicaState<deterministic::Context>>;

/// The simulated network never gives a port back, so each life of a server has its own.
async fn spawn_server(
    context: &deterministic::Context,
    kind: Case,
    port: u16,
) -> Process<ServerParts> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let handle = context.child("server_process").spawn(move |context| async move {
        let listener = context.bind(address(port)).await.unwrap();
        let registry = context.child("syncd");
        let (here, setup) = (context.child("server"), server_setup(kind));
        let core = server::core::start(here, &registry, setup, listener).await.unwrap();
        let parts = (core.ledger.clone(), core.publisher.clone(), core.identity.id);
        assert!(tell.send(parts).is_ok());
        let _core = core;
        std::future::pending::<()>().await;
    });
    Process { handle, parts: told.await.unwrap() }
}

/// A client whose way to the server leads through the relay.
async fn spawn_client(
    context: &deterministic::Context,
    kind: Case,
    database: DatabaseId,
) -> Process<ClientParts> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let handle = context.child("client_process").spawn(move |context| async move {
        let mut setup = client_setup(kind, database);
        setup.connector.port = 5000;
        let registry = context.child("syncd");
        let core = client::core::start(context.child("client"), &registry, setup).await.unwrap();
        assert!(tell.send(core.replica.clone()).is_ok());
        let _core = core;
        std::future::pending::<()>().await;
    });
    Process { handle, parts: told.await.unwrap() }
}

impl<T> Process<T> {
    /// Ends the process between any two of its steps.
    async fn kill(self) {
        let Self { handle, parts } = self;
        handle.abort();
        let _ = handle.await;
        drop(parts);
    }
}

/// Waits until `replica` is at the state of `ledger`; every state on the way is one of its log.
async fn follow_to(
    context: &deterministic::Context,
    ledger: &Ledger<Context>,
    replica: &ClientParts,
) {
    for _ in 0..20_000 {
        check_honest(ledger, replica).await;
        let wanted = ledger.head().checkpoint;
        if replica.head().is_some_and(|head| head.checkpoint.same_state(&wanted)) {
            return;
        }
        context.sleep(Duration::from_millis(10)).await;
    }
    panic!("not equal: {:?}, {:?}", ledger.head(), replica.status(context.moment()));
}

/// What the replica serves is a state that the publisher committed.
async fn check_honest(ledger: &Ledger<Context>, replica: &ClientParts) {
    if let Some(head) = replica.head() {
        let commit = ledger.log().read(head.checkpoint.sequence).await.unwrap();
        assert!(commit.checkpoint.checkpoint.same_state(&head.checkpoint), "{head:?}");
    }
}

async fn write_some(kind: Case, publisher: &server::publisher::Handle, from: u64, count: u64) {
    for n in from..from + count {
        let request = WriteRequest { changes: vec![write(kind, n, n)], idempotency: None };
        publisher.write(request, Source::Api).await.unwrap();
    }
}

/// Server and client are killed in turn, alone, at random moments.
fn kill_each(kind: Case, seed: u64) {
    let config =
        deterministic::Config::new().with_seed(seed).with_timeout(Some(Duration::from_secs(3600)));
    deterministic::Runner::new(config).start(|mut context| async move {
        let relay = spawn_relay(&context).await;
        let mut server = spawn_server(&context, kind, 4000).await;
        let database = server.parts.2;
        let mut client = spawn_client(&context, kind, database).await;
        for turn in 0..6u64 {
            write_some(kind, &server.parts.1, turn * 50, 50).await;
            let random = u64::from(rand_core::Rng::next_u32(&mut context));
            context.sleep(Duration::from_millis(random % 50)).await;
            if random & 64 == 0 {
                client.kill().await;
                write_some(kind, &server.parts.1, 1_000_000 + turn * 50, random % 50).await;
                client = spawn_client(&context, kind, database).await;
            } else {
                let head = server.parts.0.head().checkpoint;
                server.kill().await;
                context.sleep(Duration::from_millis(random % 3000)).await;
                let port = 4001 + turn as u16;
                server = spawn_server(&context, kind, port).await;
                relay.switch(address(port));
                let found = server.parts.0.head().checkpoint;
                assert!(found.same_state(&head), "an acknowledged commit is lost");
            }
            check_honest(&server.parts.0, &client.parts).await;
        }
        follow_to(&context, &server.parts.0, &client.parts).await;
        server.kill().await;
        client.kill().await;
    });
}

/// What a liar without the publisher's key may do to a message.
fn lie(random: &mut impl FnMut() -> u64, seen: &mut Vec<Bytes>, message: FromServer) -> Vec<Bytes> {
    let is_reply = matches!(message, FromServer::Reply(_));
    let [frame]: [Bytes; 1] = honest(message).try_into().unwrap();
    if seen.len() < 64 && !is_reply {
        seen.push(frame.clone());
    }
    let at = random() as usize;
    match random() % 40 {
        0 => Vec::new(),
        1 => vec![frame.clone(), frame],
        2 => vec![frame.slice(..at % frame.len())],
        3 => vec![seen.get(at % seen.len().max(1)).cloned().unwrap_or(frame)],
        4 | 5 => {
            let mut bytes = frame.to_vec();
            bytes[at % frame.len()] ^= 1 << (random() % 8);
            vec![bytes.into()]
        }
        6 => (0..random() % 4).map(|_| vec![random() as u8; at % 500].into()).collect(),
        _ => vec![frame],
    }
}

/// A client whose only way to the server leads through a liar: it is never at a state that the
/// publisher did not sign, never accuses the publisher, and is at its last one once the liar tires.
fn liar(kind: Case, seed: u64) {
    let config =
        deterministic::Config::new().with_seed(seed).with_timeout(Some(Duration::from_secs(7200)));
    deterministic::Runner::new(config).start(|context| async move {
        let server = spawn_server(&context, kind, 4000).await;
        let (ledger, publisher, database) = &server.parts;
        let relay = spawn_relay(&context).await;
        let state = std::sync::Mutex::new((context.child("random"), Vec::new()));
        relay.tamper(move |message| {
            let mut state = state.lock().unwrap();
            let (random, seen) = &mut *state;
            lie(&mut || rand_core::Rng::next_u64(random), seen, message)
        });
        write_some(kind, publisher, 0, 300).await;
        let client = spawn_client(&context, kind, *database).await;
        for turn in 0..40u64 {
            write_some(kind, publisher, 1000 + turn * 10, 10).await;
            context.sleep(Duration::from_millis(500)).await;
            check_honest(ledger, &client.parts).await;
        }
        relay.act(Act::Honest);
        follow_to(&context, ledger, &client.parts).await;
        assert_eq!(client.parts.metrics.equivocations.get(), 0);
        assert!(relay.connections() > 1, "the liar was never left");
    });
}

/// Seeds of a run; `SYNCD_SIMULATION_SEEDS=1000` makes it longer.
fn seeds(default: u64) -> u64 {
    std::env::var("SYNCD_SIMULATION_SEEDS").map_or(default, |seeds| seeds.parse().unwrap())
}

fn run_seeds(family: Family, mode: Mode, storage: Mode, default: u64) {
    for seed in 0..seeds(default) {
        let hash = if seed % 2 == 0 { HashKind::Sha256 } else { HashKind::Blake3 };
        eprintln!("family {family}, mode {mode}, storage {storage}, seed {seed}");
        let case = Case { kind: Kind { family, hash }, mode, storage };
        publish_sync_follow(case, seed);
        crash_and_recover(case, seed);
        kill_each(case, seed);
        liar(case, seed);
    }
}

#[test]
fn publish_sync_follow_any() {
    run_seeds(Family::Any, Mode::Full, Mode::Full, 5);
}

#[test]
fn publish_sync_follow_immutable() {
    run_seeds(Family::Immutable, Mode::Full, Mode::Full, 5);
}

#[test]
fn publish_sync_follow_current() {
    run_seeds(Family::Current, Mode::Full, Mode::Full, 2);
}

#[test]
fn publish_sync_follow_keyless() {
    run_seeds(Family::Keyless, Mode::Full, Mode::Full, 2);
}

#[test]
fn publish_sync_follow_compact_immutable() {
    run_seeds(Family::Immutable, Mode::Compact, Mode::Full, 2);
}

#[test]
fn publish_sync_follow_compact_keyless() {
    run_seeds(Family::Keyless, Mode::Compact, Mode::Full, 2);
}

#[test]
fn publish_sync_follow_compact_keyless_from_compact_storage() {
    run_seeds(Family::Keyless, Mode::Compact, Mode::Compact, 2);
}

/// Storage of another layout is refused by name, by both.
#[test]
fn another_layout_is_refused() {
    use commonware_utils::sequence::U64;
    let kind = Case::from(Kind { family: Family::Any, hash: HashKind::Blake3 });
    deterministic::Runner::seeded(1).start(|context| async move {
        let publisher = PrivateKey::from_seed(2).public_key();
        let new = Parameters::new([0; 32], publisher, kind.family, kind.hash);
        let record = server::state::Record {
            parameters: Parameters { layout: 99, ..new },
            generated: false,
            storage: Mode::Full,
            stage: server::state::Stage::Complete,
        };
        let mut state = server::state::State::open(context.child("old")).await.unwrap();
        state.put(record).await.unwrap();
        let listener = context.bind("127.0.0.1:4000".parse().unwrap()).await.unwrap();
        let (here, registry) = (context.child("server"), context.child("syncd"));
        let started = server::core::start(here, &registry, server_setup(kind), listener).await;
        let error = started.err().unwrap();
        assert!(error.is_damage() && error.to_string().contains("layout 99"), "{error}");

        let database = syncd::database::types::Digest([1; 32]);
        let pin = client::pin::Pin { layout: 99, family: kind.family, database };
        let mut pins = client::pin::open(&context).await.unwrap();
        let write = pins.update(|pins| {
            pins.insert(U64::new(client::pin::RECORD), pin);
        });
        write.await.unwrap();
        let here = context.child("client");
        let started = client::core::start(here, &registry, client_setup(kind, database)).await;
        let error = started.err().unwrap();
        assert!(error.is_damage() && error.to_string().contains("layout version 99"), "{error}");
    });
}
