//! A publisher and its replicas on simulated machines, through what the seed draws: crashes at any
//! await, power cuts, slow and full disks, cut connections, lies, clocks that step, restarts in
//! order, and what an operator does: rotations of the key, new epochs, restores of old copies,
//! clients that may no longer connect. A [model](super::model) remembers what was promised.

mod checks;
mod cut;
mod deeds;
mod lies;
mod operator;
mod readers;
mod writers;

use super::{
    Case, Relay, address, client_setup,
    machine::{Crash, Disk, Life, Machine, SYNC_TIME_BUSY, Skew, Steps, World},
    model::Model,
    server_setup,
};
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use commonware_runtime::{
    Clock as _, Handle, Network as _, Runner as _, Spawner as _, Supervisor as _, deterministic,
};
use cut::Cut;
use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};
use syncd::{
    client::{self, state::ReplicaState},
    commit_log::Retention,
    database::{
        Kind,
        types::{DatabaseId, Family, HashKind, Mode},
    },
    ledger::{History, Ledger},
    serve::Authorized,
    server, watch,
};
use tokio::sync::oneshot;

/// How often a heartbeat comes.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long everything may take to converge when the faults are over.
const CONVERGE: Duration = Duration::from_secs(180);
/// How long it takes until the tasks of a machine that was ended have let go of everything.
const ITS_TASKS_END: Duration = Duration::from_millis(5);
/// Port of the server, and of the relay before it.
const SERVER: u16 = 4000;
const RELAY: u16 = 5000;
/// Keys of one writer, where keys are overwritten.
const KEYS: u64 = 12;
const WRITERS: u64 = 3;
/// Changes of a write in bulk, on average.
const BULK: u64 = 500;
const REPLICAS: usize = 2;

/// A process on a machine.
struct Process<T> {
    life: Arc<Life>,
    /// For its clocks.
    clock: Machine,
    handle: Handle<()>,
    drain: watch::Sender<bool>,
    parts: T,
}

type Server = (Arc<Ledger<Machine>>, server::publisher::Handle, DatabaseId);
type Client = Arc<ReplicaState<Machine>>;
type Publisher = (Arc<Life>, server::publisher::Handle);

/// Why a process did not start.
enum Start<T> {
    Up(Process<T>),
    /// It crashed before it was up.
    Crashed,
    /// It refused, for this reason.
    Refused(String),
}

/// Everything that lasts through the whole run.
struct Story {
    world: Arc<World>,
    context: deterministic::Context,
    case: Case,
    history: History,
    model: Arc<Mutex<Model>>,
    server_disk: Disk,
    server_skew: Arc<Skew>,
    client_disks: Vec<Disk>,
    client_skews: Vec<Arc<Skew>>,
    lives: AtomicU64,
    /// The running server's publisher, for the writers.
    publisher: Arc<Mutex<Option<Publisher>>>,
    is_over: Arc<AtomicBool>,
    evidence: tempfile::TempDir,
    /// Whose connections the server takes.
    authorized: Authorized,
    /// Seed of the key that signs now.
    publisher_seed: AtomicU64,
    /// A copy of the publisher's storage.
    copy: Mutex<Option<Disk>>,
    /// Whether the publisher runs on an old copy.
    may_forget: Arc<AtomicBool>,
    /// Whether the first writer writes so much that operations are pruned.
    is_bulky: bool,
    /// What is left out.
    cut: Cut,
}

impl Story {
    fn replicas(&self) -> usize {
        self.client_disks.len()
    }

    /// The key that signs now.
    fn publisher(&self) -> PrivateKey {
        PrivateKey::from_seed(self.publisher_seed.load(Ordering::Relaxed))
    }

    fn now(&self) -> Duration {
        self.world.context.current().duration_since(UNIX_EPOCH).unwrap()
    }

    fn machine(&self, name: &'static str, disk: &Disk, skew: &Arc<Skew>) -> (Machine, Arc<Life>) {
        let number = self.lives.fetch_add(1, Ordering::Relaxed);
        let label = format!("{name}, life {number}");
        let life = Life::new(self.world.clone(), label, disk.clone(), skew.clone());
        let context = self.context.child(name).with_attribute("life", number);
        (Machine::new(context, life.clone()), life)
    }

    /// Starts a server and waits until it is up, crashed, or refused.
    async fn start_server(&self, crash: Option<Crash>) -> Start<Server> {
        let (machine, life) = self.machine("server", &self.server_disk, &self.server_skew);
        if let Some(crash) = crash {
            life.crash_at(crash);
        }
        let clock = machine.child("clock");
        let (tell, told) = oneshot::channel();
        let (drain, mut draining) = watch::channel(false);
        let mut setup = server_setup(self.case);
        setup.history = self.history;
        setup.heartbeat_interval = HEARTBEAT;
        setup.initial_operations = 0;
        setup.publisher = self.publisher();
        setup.authorized = self.authorized.clone();
        let may_forget = self.may_forget.clone();
        let handle = machine.spawn(move |context| async move {
            let listener = context.bind(address(SERVER)).await.unwrap();
            let registry = context.child("syncd");
            let started =
                server::core::start(context.child("core"), &registry, setup, listener).await;
            let mut core = match started {
                Ok(core) => core,
                Err(error) => {
                    let _ = tell.send(Err(error.to_string()));
                    return;
                }
            };
            let parts = (core.ledger.clone(), core.publisher.clone(), core.identity.id);
            if tell.send(Ok(parts)).is_err() {
                return;
            }
            tokio::select! {
                biased;
                () = told_to_drain(&mut draining) => core.drain().await.unwrap(),
                claim = core.amnesia.recv() => {
                    assert!(may_forget.load(Ordering::Relaxed), "the server forgot: {claim:?}");
                    context.life.die("since it was shown a commit that it does not have");
                }
                ended = &mut core.publishing => {
                    context.life.world.step(format!("the publisher ended: {ended:?}"));
                    context.life.die("as the daemon does when its disk fails");
                }
            }
        });
        self.up(clock, handle, drain, told).await
    }

    async fn start_client(&self, index: usize, crash: Option<Crash>) -> Start<Client> {
        let (disk, skew) = (&self.client_disks[index], &self.client_skews[index]);
        let (machine, life) = self.machine("client", disk, skew);
        if let Some(crash) = crash {
            life.crash_at(crash);
        }
        let (database, trusted) = self.model.lock().unwrap().pinned(index);
        let mut setup = client_setup(self.case, database);
        setup.policy.publishers = vec![trusted];
        setup.connector.port = RELAY;
        setup.connector.identity = PrivateKey::from_seed(10 + index as u64);
        setup.sync.history = self.history;
        setup.directory = self.evidence.path().join(index.to_string());
        let clock = machine.child("clock");
        let (tell, told) = oneshot::channel();
        let (drain, mut draining) = watch::channel(false);
        let handle = machine.spawn(move |context| async move {
            let registry = context.child("syncd");
            let started = client::core::start(context.child("core"), &registry, setup).await;
            let mut core = match started {
                Ok(core) => core,
                Err(error) => {
                    let _ = tell.send(Err(error.to_string()));
                    return;
                }
            };
            if tell.send(Ok(core.replica.clone())).is_err() {
                return;
            }
            tokio::select! {
                biased;
                () = told_to_drain(&mut draining) => core.drain().await.unwrap(),
                ended = &mut core.looping => {
                    context.life.world.step(format!("a replica's loop ended: {ended:?}"));
                    context.life.die("as the daemon does when its disk fails");
                }
                ended = &mut core.upkeep => {
                    context.life.world.step(format!("a replica's upkeep ended: {ended:?}"));
                    context.life.die("as the daemon does when its disk fails");
                }
            }
        });
        self.up(clock, handle, drain, told).await
    }

    async fn up<T>(
        &self,
        clock: Machine,
        handle: Handle<()>,
        drain: watch::Sender<bool>,
        told: oneshot::Receiver<Result<T, String>>,
    ) -> Start<T> {
        let life = clock.life.clone();
        let started = tokio::select! {
            biased;
            told = told => told.ok(),
            () = life.died() => None,
        };
        // It may have said so with its last breath.
        let started = started.filter(|_| !life.is_dead());
        match started {
            Some(Ok(parts)) => {
                self.world.step(format!("{} is up", life.name));
                Start::Up(Process { life, clock, handle, drain, parts })
            }
            Some(Err(error)) => {
                self.world.step(format!("{} refuses: {error}", life.name));
                self.bury(&life, handle).await;
                Start::Refused(error)
            }
            None => {
                self.bury(&life, handle).await;
                Start::Crashed
            }
        }
    }

    /// Removes what is left of a crashed machine's tasks, and cuts its power.
    async fn bury(&self, life: &Life, handle: Handle<()>) {
        life.die("at its end");
        handle.abort();
        let _ = handle.await;
        // Its other tasks end after it, and with them what they hold, such as its port.
        self.world.sleep(ITS_TASKS_END).await;
        life.disk.cut_power(&self.world);
    }

    async fn end<T>(&self, process: Process<T>) {
        let Process { life, handle, parts, .. } = process;
        drop(parts);
        self.bury(&life, handle).await;
    }

    /// Stops a process in order, unless it crashes on the way.
    async fn stop<T>(&self, process: Process<T>) -> bool {
        let Process { life, handle, drain, parts, .. } = process;
        drop(parts);
        self.world.step(format!("{} drains", life.name));
        if self.world.one_in(4) && !self.is_over.load(Ordering::Relaxed) {
            life.crash_at(Crash::AtPoll(life.polls() + self.world.draw(1, 150)));
        }
        drain.send_replace(true);
        tokio::pin!(handle);
        let in_order = tokio::select! {
            biased;
            ended = &mut handle => ended.is_ok(),
            () = life.died() => false,
            () = self.world.context.sleep(Duration::from_secs(60)) => {
                panic!("{} does not end", life.name)
            }
        };
        handle.abort();
        if !in_order {
            let _ = handle.await;
        }
        self.world.sleep(ITS_TASKS_END).await;
        if in_order {
            self.world.step(format!("{} has stopped", life.name));
        } else {
            life.disk.cut_power(&self.world);
        }
        in_order
    }
}

/// Waits until a process is told to stop in order.
async fn told_to_drain(draining: &mut watch::Receiver<bool>) {
    let _ = draining.wait_for(|drain| *drain).await;
}

/// Who is on stage.
#[derive(Default)]
struct Cast {
    server: Option<Process<Server>>,
    clients: Vec<Option<Process<Client>>>,
}

/// What is out of order now, which loosens what may be expected.
#[derive(Default)]
struct Disorder {
    /// Until when clocks may lead to a wrong lag.
    clocks_until: Duration,
}

impl Story {
    /// Brings the server up, through crashes at its start if the seed wants them.
    async fn revive_server(&self, cast: &mut Cast) {
        let mut crash = (self.world.one_in(5)).then(|| Crash::AtPoll(self.world.draw(1, 400)));
        loop {
            match self.start_server(crash.take()).await {
                Start::Up(process) => {
                    let key = self.publisher().public_key();
                    self.model.lock().unwrap().begin(process.parts.2, key);
                    tokio::select! {
                        biased;
                        () = self.check_server(&process.parts.0) => {}
                        () = process.life.died() => {}
                    }
                    let publisher = (process.life.clone(), process.parts.1.clone());
                    *self.publisher.lock().unwrap() = Some(publisher);
                    cast.server = Some(process);
                    return;
                }
                Start::Crashed => {}
                Start::Refused(error) => panic!("the server does not start: {error}"),
            }
        }
    }

    async fn revive_client(
        &self,
        cast: &mut Cast,
        index: usize,
        crashed: Duration,
        in_order: bool,
    ) {
        let mut crash = (self.world.one_in(5)).then(|| Crash::AtPoll(self.world.draw(1, 400)));
        loop {
            match self.start_client(index, crash.take()).await {
                Start::Up(process) => {
                    let known = process.parts.known.newest();
                    // What is written down waits for the database's turn.
                    let busy = self.client_disks[index].was_busy();
                    let late = if busy { 2 * SYNC_TIME_BUSY } else { Duration::ZERO };
                    let crashed = crashed.saturating_sub(late);
                    let mut model = self.model.lock().unwrap();
                    let head = process.parts.head();
                    model.restarted(index, head.as_ref(), known.as_ref(), crashed, in_order);
                    cast.clients[index] = Some(process);
                    return;
                }
                Start::Crashed => {}
                Start::Refused(error) => panic!("replica {index} does not start: {error}"),
            }
        }
    }
}

/// What a seed is about.
fn case(seed: u64) -> Case {
    let (family, mode, storage) = match seed % 8 {
        0 | 1 => (Family::Any, Mode::Full, Mode::Full),
        2 => (Family::Current, Mode::Full, Mode::Full),
        3 => (Family::Immutable, Mode::Full, Mode::Full),
        4 | 5 => (Family::Keyless, Mode::Full, Mode::Full),
        6 => (Family::Immutable, Mode::Compact, Mode::Full),
        _ => (Family::Keyless, Mode::Compact, Mode::Compact),
    };
    let hash = if (seed / 8).is_multiple_of(2) { HashKind::Blake3 } else { HashKind::Sha256 };
    Case { kind: Kind { family, hash }, mode, storage }
}

async fn tell(context: deterministic::Context, seed: u64, world: Arc<World>, cut: Cut) {
    // The newest segment of the log, or some, so that it is trimmed all the time; or all of it.
    let bytes = [2_000, 2_000, 60_000, 1 << 30][world.draw(0, 4) as usize];
    let operations = world.one_in(3).then(|| world.draw(0, 1000));
    let history = History { log: Retention { bytes, ..super::HISTORY.log }, operations };
    let skew = |world: &World| {
        Arc::new(Skew::new(world.draw(0, 2000) as i64 - 1000, world.draw(0, 200) as i64 - 100))
    };
    let replicas = cut.replicas.min(REPLICAS);
    let story = Arc::new(Story {
        case: case(seed),
        history,
        model: Arc::default(),
        server_disk: Disk::default(),
        server_skew: skew(&world),
        client_disks: (0..replicas).map(|_| Disk::default()).collect(),
        client_skews: (0..replicas).map(|_| skew(&world)).collect(),
        lives: AtomicU64::new(0),
        publisher: Arc::default(),
        is_over: Arc::default(),
        evidence: tempfile::tempdir().unwrap(),
        authorized: Arc::new(watch::Sender::new(None)),
        publisher_seed: AtomicU64::new(2),
        copy: Mutex::default(),
        may_forget: Arc::default(),
        world: world.clone(),
        context: context.child("story"),
        // Only where values are overwritten does the floor advance, below which operations are pruned.
        is_bulky: operations.is_some()
            && (matches!(case(seed).kind.family, Family::Any | Family::Current) || world.one_in(4)),
        cut: cut.clone(),
    });
    let (between, _) = story.machine("relay", &Disk::default(), &Arc::new(Skew::new(0, 0)));
    let listener = between.bind(address(RELAY)).await.unwrap();
    let relay = Relay::spawn(between, listener, address(SERVER), PrivateKey::from_seed(1));
    let mut cast = Cast::default();
    story.revive_server(&mut cast).await;
    for index in 0..replicas {
        cast.clients.push(None);
        story.model.lock().unwrap().enrol();
        story.revive_client(&mut cast, index, Duration::ZERO, true).await;
    }
    for writer in 0..cut.writers.min(WRITERS) {
        let story = story.clone();
        context.child("writer").spawn(move |context| Story::write(context, story, writer));
    }
    let mut disorder = Disorder::default();
    for _ in 0..world.draw(6, 16).min(cut.deeds) {
        story.act(&mut cast, &relay, &mut disorder).await;
    }
    story.finish(&mut cast, &relay).await;
    story.publisher.lock().unwrap().take();
    if let Some(server) = cast.server.take() {
        story.stop(server).await;
    }
}

/// Runs one seed; what failed, with the last steps and the command that repeats it.
fn run(seed: u64, cut: &Cut) -> Result<(), String> {
    let config = deterministic::Config::new()
        .with_seed(seed)
        .with_timeout(Some(Duration::from_secs(24 * 3600)));
    let steps = Steps::default();
    let (kept, of) = (steps.clone(), cut.clone());
    let work = move || {
        deterministic::Runner::new(config).start(|context| async move {
            let world = World::new(context.child("world"), seed, steps);
            tell(context, seed, world, of).await;
        });
    };
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or(panic.downcast_ref::<&str>().map(ToString::to_string));
        format!(
            "seed {seed}: {}\n{}repeat it with: {}SYNCD_SIMULATION_SEED={seed} cargo test --test simulation story -- --nocapture",
            text.unwrap_or_default(),
            kept.text(),
            cut.variable(),
        )
    })
}

#[test]
fn stories() {
    let seeds = match std::env::var("SYNCD_SIMULATION_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..super::seeds(16)).collect(),
    };
    let cut = Cut::of_environment();
    for seed in seeds {
        if let Err(text) = run(seed, &cut) {
            panic!("{text}");
        }
    }
}

/// Looks for a smaller story that fails as the seed does: fewer deeds, kinds of deeds, actors.
#[test]
#[ignore = "for a seed that fails: just shrink SEED"]
fn shrink() {
    let seed = std::env::var("SYNCD_SIMULATION_SEED").expect("SYNCD_SIMULATION_SEED says which");
    println!("{}", cut::shrink(seed.parse().unwrap()));
}
