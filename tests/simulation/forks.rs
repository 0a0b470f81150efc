//! Two histories under one key, drawn from the seed: whatever their order and sizes, a replica
//! that holds one and meets the other finds out, or the server that it meets does.

use super::{
    Act, Case, ClientParts, Context, Process, address, client_setup, honest, server_setup,
    spawn_relay,
};
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use commonware_runtime::{
    Blob as _, Clock as _, Network as _, Runner as _, Spawner as _, Storage as _, Supervisor as _,
    deterministic,
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use syncd::verify::Evidence;
use syncd::{
    api::WriteRequest,
    checkpoint::SignedCheckpoint,
    client::{
        self,
        phase::{Phase, StallReason},
    },
    commit_log::Commit,
    database::{
        Kind,
        record::CommitMetadata,
        types::{DatabaseId, Family, HashKind, Mode},
    },
    ledger::Ledger,
    link::Connector,
    server::{self, publisher::Source},
};

type BlobOf = <Context as commonware_runtime::Storage>::Blob;

/// What a killed server left: every blob of its partitions.
struct Copy(Vec<(String, Vec<u8>, Vec<u8>)>);

fn partitions(family: Family) -> Vec<String> {
    let mut names = syncd::database::partitions(family, server::core::GENERATION);
    names.extend(["server", "publisher-keys"].map(String::from));
    names
}

/// Opens a blob once the tasks of the process that had it are gone.
async fn open(context: &Context, partition: &str, name: &[u8]) -> (BlobOf, u64) {
    for _ in 0..1000 {
        match context.open(partition, name).await {
            Err(commonware_runtime::Error::BlobAlreadyOpen(..)) => {
                context.sleep(Duration::from_millis(1)).await;
            }
            opened => return opened.unwrap(),
        }
    }
    panic!("blob {} of {partition} stays open", hex::encode(name));
}

async fn take_copy(context: &Context, family: Family) -> Copy {
    let mut blobs = Vec::new();
    for partition in partitions(family) {
        for name in context.scan(&partition).await.unwrap_or_default() {
            let (blob, size) = open(context, &partition, &name).await;
            let size = usize::try_from(size).unwrap();
            let bytes = blob.read_at(0, size, Default::default()).await.unwrap();
            blobs.push((partition.clone(), name, bytes.coalesce().as_ref().to_vec()));
        }
    }
    Copy(blobs)
}

async fn bring_back(context: &Context, family: Family, copy: &Copy) {
    for partition in partitions(family) {
        let _ = context.remove(&partition, None).await;
    }
    for (partition, name, bytes) in &copy.0 {
        let (blob, _) = open(context, partition, name).await;
        blob.write_at(0, bytes.clone(), Default::default()).await.unwrap();
        blob.sync().await.unwrap();
    }
}

/// A server that ends when it is shown that it forgot, as the daemon does.
struct Server {
    ledger: Arc<Ledger<Context>>,
    publisher: server::publisher::Handle,
    database: DatabaseId,
    forgot: Arc<AtomicBool>,
}

async fn start_server(context: &Context, kind: Case, port: u16) -> Process<Server> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let handle = context.child("server_process").spawn(move |context| async move {
        let listener = context.bind(address(port)).await.unwrap();
        let registry = context.child("syncd");
        let mut setup = server_setup(kind);
        setup.initial_operations = 0;
        let here = context.child("server");
        let mut core = server::core::start(here, &registry, setup, listener).await.unwrap();
        let forgot = Arc::new(AtomicBool::new(false));
        let parts = Server {
            ledger: core.ledger.clone(),
            publisher: core.publisher.clone(),
            database: core.identity.id,
            forgot: forgot.clone(),
        };
        assert!(tell.send(parts).is_ok());
        core.amnesia.recv().await;
        forgot.store(true, Ordering::Relaxed);
    });
    Process { handle, parts: told.await.unwrap() }
}

async fn start_client(
    context: &Context,
    kind: Case,
    database: DatabaseId,
    directory: &Path,
) -> Process<ClientParts> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let directory = directory.to_path_buf();
    let handle = context.child("client_process").spawn(move |context| async move {
        let mut setup = client_setup(kind, database);
        setup.connector.port = 5000;
        setup.directory = directory;
        let registry = context.child("syncd");
        let core = client::core::start(context.child("client"), &registry, setup).await.unwrap();
        assert!(tell.send(core.replica.clone()).is_ok());
        let _core = core;
        std::future::pending::<()>().await;
    });
    Process { handle, parts: told.await.unwrap() }
}

fn draw(context: &mut Context, from: u64, to: u64) -> u64 {
    from + u64::from(rand_core::Rng::next_u32(context)) % (to - from)
}

/// Commits drawn from the seed, many and small or few and large; all keys are new.
async fn write_branch(context: &mut Context, kind: Case, server: &Server, branch: u64, most: u64) {
    let (commits, changes) = if draw(context, 0, 2) == 0 {
        (draw(context, 1, most * 4), 1)
    } else {
        (draw(context, 1, most), draw(context, 1, 60))
    };
    for commit in 0..commits {
        let from = branch * 1_000_000 + commit * 100;
        let request = WriteRequest {
            changes: (from..from + changes).map(|n| super::write(kind, n, n)).collect(),
            idempotency: None,
        };
        server.publisher.write(request, Source::Api).await.unwrap();
    }
}

async fn wait(context: &Context, what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..12_000 {
        if condition() {
            return;
        }
        context.sleep(Duration::from_millis(10)).await;
    }
    panic!("not within two minutes: {what}");
}

fn is_at(replica: &ClientParts, wanted: &SignedCheckpoint) -> bool {
    replica.head().is_some_and(|head| head.checkpoint.same_state(&wanted.checkpoint))
}

/// Every file convicts the publisher, for whoever knows its key and nothing else.
fn check_evidence(directory: &Path) -> usize {
    let Ok(files) = std::fs::read_dir(directory.join("evidence")) else { return 0 };
    let mut count = 0;
    for file in files {
        let text = std::fs::read(file.unwrap().path()).unwrap();
        let evidence = Evidence::from_json(&text).unwrap();
        evidence.verify(vec![PrivateKey::from_seed(2).public_key()]).unwrap();
        count += 1;
    }
    count
}

fn fork(kind: Case, seed: u64) {
    let config =
        deterministic::Config::new().with_seed(seed).with_timeout(Some(Duration::from_secs(3600)));
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().to_path_buf();
    deterministic::Runner::new(config).start(|mut context| async move {
        let relay = spawn_relay(&context).await;
        // What both histories have in common.
        let server = start_server(&context, kind, 4000).await;
        let database = server.parts.database;
        write_branch(&mut context, kind, &server.parts, 0, 4).await;
        server.kill().await;
        let common = take_copy(&context, kind.family).await;
        // The replica's branch.
        let server = start_server(&context, kind, 4001).await;
        relay.switch(address(4001));
        let client = start_client(&context, kind, database, &directory).await;
        write_branch(&mut context, kind, &server.parts, 1, 12).await;
        let ours = server.parts.ledger.head();
        wait(&context, "the replica follows", || is_at(&client.parts, &ours)).await;
        let log_first = client.parts.ledger.load_full().unwrap().log().bounds().first;
        let held = client.parts.ledger.load_full().unwrap();
        let held_from = held.log().read(log_first).await.unwrap().checkpoint.checkpoint.floor;
        drop(held);
        server.kill().await;
        let truth = take_copy(&context, kind.family).await;
        // The other one, met by a replica that runs, or starts again, or has lost its data.
        let meeting = draw(&mut context, 0, 3);
        let mut running = Some(client);
        if meeting > 0
            && let Some(client) = running.take()
        {
            client.kill().await;
            if meeting == 2 {
                lose_data(&context, kind.family).await;
            }
        }
        // Whoever is between them may hide the replica's state from the server.
        let is_hidden = draw(&mut context, 0, 2) == 0;
        if is_hidden {
            relay.tamper(honest);
        }
        bring_back(&context, kind.family, &common).await;
        let server = start_server(&context, kind, 4002).await;
        write_branch(&mut context, kind, &server.parts, 2, 12).await;
        relay.switch(address(4002));
        let client = match running {
            Some(client) => client,
            None => start_client(&context, kind, database, &directory).await,
        };
        let forgot = server.parts.forgot.clone();
        // A state from before all that the replica still holds can be told to be behind, no more.
        let theirs = server.parts.ledger.head().checkpoint.sequence;
        let their_size = server.parts.ledger.head().checkpoint.size;
        let holds_operations = meeting < 2 && kind.mode == Mode::Full && their_size >= held_from;
        let is_told_apart = !is_hidden || holds_operations || theirs >= log_first;
        wait(&context, "the fork is found", || {
            let is_behind = client.parts.phase() == Phase::Stalled(StallReason::ServerBehind);
            forgot.load(Ordering::Relaxed)
                || client.parts.metrics.equivocations.get() > 0
                || (!is_told_apart && is_behind)
        })
        .await;
        let files = check_evidence(&directory);
        assert!(forgot.load(Ordering::Relaxed) || files > 0 || !is_told_apart);
        assert!(!is_hidden || files > 0 || !is_told_apart);
        // It goes on serving its own branch, or nothing.
        assert!(client.parts.head().is_none() || is_at(&client.parts, &ours));
        context.sleep(Duration::from_secs(10)).await;
        assert!(client.parts.head().is_none() || is_at(&client.parts, &ours));
        server.kill().await;
        // The true one alone: it serves, and the replica goes on by itself.
        bring_back(&context, kind.family, &truth).await;
        let server = start_server(&context, kind, 4003).await;
        relay.act(Act::Honest);
        relay.switch(address(4003));
        write_branch(&mut context, kind, &server.parts, 3, 4).await;
        let newest = server.parts.ledger.head();
        wait(&context, "the replica goes on", || is_at(&client.parts, &newest)).await;
        assert!(!server.parts.forgot.load(Ordering::Relaxed), "the true server was stopped");
        check_evidence(&directory);
        server.kill().await;
        client.kill().await;
    });
}

/// Removes a replica's database and leaves its log.
async fn lose_data(context: &Context, family: Family) {
    for partition in syncd::database::partitions(family, 1) {
        if !partition.starts_with("commits-") {
            let _ = context.remove(&partition, None).await;
        }
    }
}

fn run(family: Family, mode: Mode, storage: Mode, default: u64) {
    for seed in 0..super::seeds(default) {
        let hash = if seed % 2 == 0 { HashKind::Blake3 } else { HashKind::Sha256 };
        eprintln!("fork: family {family}, mode {mode}, storage {storage}, seed {seed}");
        fork(Case { kind: Kind { family, hash }, mode, storage }, seed);
    }
}

#[test]
fn forks_are_found_any() {
    run(Family::Any, Mode::Full, Mode::Full, 12);
}

#[test]
fn forks_are_found_immutable() {
    run(Family::Immutable, Mode::Full, Mode::Full, 6);
}

#[test]
fn forks_are_found_current() {
    run(Family::Current, Mode::Full, Mode::Full, 6);
}

#[test]
fn forks_are_found_keyless() {
    run(Family::Keyless, Mode::Full, Mode::Full, 6);
}

#[test]
fn forks_are_found_compact_immutable() {
    run(Family::Immutable, Mode::Compact, Mode::Full, 6);
}

#[test]
fn forks_are_found_compact_keyless_from_compact_storage() {
    run(Family::Keyless, Mode::Compact, Mode::Compact, 6);
}

/// A follower is sent a commit before reads see it. If it comes back with it at that moment, that
/// is no amnesia.
#[test]
fn a_commit_that_reads_do_not_see_yet_is_no_amnesia() {
    let kind = Case::from(Kind { family: Family::Any, hash: HashKind::Blake3 });
    deterministic::Runner::timed(Duration::from_secs(60)).start(|context| async move {
        let server = start_server(&context, kind, 4000).await;
        let ledger = &server.parts.ledger;
        let head = ledger.head().checkpoint;
        let metadata = CommitMetadata { sequence: head.sequence + 1, committed_at_ms: 1 };
        let prepared = ledger.prepare(&[], metadata).await.unwrap();
        let key = PrivateKey::from_seed(2);
        let none = (Vec::new(), Vec::new());
        let commit = Commit::following(head, prepared.state, metadata, none.0, none.1, 1, &key);
        ledger.log().append(std::slice::from_ref(&commit)).await.unwrap();
        assert_ne!(ledger.head().checkpoint.sequence, commit.sequence());
        let connector =
            Connector { port: 4000, ..client_setup(kind, server.parts.database).connector };
        let mut hello = syncd::wire::Hello {
            newest: Some(commit.checkpoint.clone()),
            ..syncd::wire::Hello::new(kind.family, kind.mode, Some(server.parts.database))
        };
        let here = context.child("first");
        connector.connect(here, &hello, Arc::default()).await.unwrap();
        // One commit later it would be.
        let mut later = commit.checkpoint.checkpoint.clone();
        later.sequence += 1;
        later.size += 1;
        hello.newest = Some(later.sign(&key));
        let here = context.child("second");
        assert!(connector.connect(here, &hello, Arc::default()).await.is_err());
        let forgot = server.parts.forgot.clone();
        wait(&context, "the server stops", || forgot.load(Ordering::Relaxed)).await;
        server.kill().await;
    });
}
