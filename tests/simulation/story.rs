//! A publisher and its replicas on simulated machines, through what the seed draws: crashes at any
//! await, power cuts, slow and full disks, cut connections, lies, clocks that step, restarts in
//! order. A [model](super::model) remembers what was promised.

use super::{
    Act, Case, FromServer, Relay, address, client_setup, honest,
    machine::{Crash, Disk, Life, Machine, Point, Skew, World},
    model::{Answered, Model},
    server_setup,
};
use bytes::Bytes;
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use commonware_runtime::{
    Clock as _, Handle, Network as _, Runner as _, Spawner as _, Supervisor as _, deterministic,
};
use std::{
    num::NonZeroU64,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};
use syncd::{
    api::{WriteError, WriteRequest},
    client::{self, replica::Replica},
    commit_log::Retention,
    database::{
        Kind, Operation,
        types::{Change, DatabaseId, Digest, Family, HashKind, Mode},
        verify_key,
    },
    ledger::{History, Ledger},
    server::{self, publisher::Source},
    wire::{Code, Refused, Response, ServerMessage},
};
use tokio::sync::{oneshot, watch};

/// How often a heartbeat comes.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long everything may take to converge when the faults are over.
const CONVERGE: Duration = Duration::from_secs(180);
/// Port of the server, and of the relay before it.
const SERVER: u16 = 4000;
const RELAY: u16 = 5000;
/// Keys of one writer, where keys are overwritten.
const KEYS: u64 = 12;
const WRITERS: u64 = 3;
const REPLICAS: usize = 2;

/// A process on a machine.
struct Process<T> {
    life: Arc<Life>,
    handle: Handle<()>,
    drain: watch::Sender<bool>,
    parts: T,
}

type Server = (Arc<Ledger<Machine>>, server::publisher::Handle, DatabaseId);
type Client = Arc<Replica<Machine>>;

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
    publisher: Arc<Mutex<Option<(Arc<Life>, server::publisher::Handle)>>>,
    is_over: Arc<AtomicBool>,
    evidence: tempfile::TempDir,
}

impl Story {
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
        let (tell, told) = oneshot::channel();
        let (drain, mut draining) = watch::channel(false);
        let mut setup = server_setup(self.case);
        setup.history = self.history;
        setup.heartbeat_interval = HEARTBEAT;
        setup.initial_operations = 0;
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
                _ = draining.wait_for(|drain| *drain) => core.drain().await.unwrap(),
                claim = core.amnesia.recv() => panic!("the server forgot: {claim:?}"),
                ended = &mut core.publishing => {
                    context.life.world.step(format!("the publisher ended: {ended:?}"));
                    context.life.die("as the daemon does when its disk fails");
                }
            }
        });
        self.up(life, handle, drain, told).await
    }

    async fn start_client(&self, index: usize, crash: Option<Crash>) -> Start<Client> {
        let (disk, skew) = (&self.client_disks[index], &self.client_skews[index]);
        let (machine, life) = self.machine("client", disk, skew);
        if let Some(crash) = crash {
            life.crash_at(crash);
        }
        let database = self.model.lock().unwrap().database.unwrap();
        let mut setup = client_setup(self.case, database);
        setup.connector.port = RELAY;
        setup.connector.identity = PrivateKey::from_seed(10 + index as u64);
        setup.sync.history = self.history;
        setup.directory = self.evidence.path().join(index.to_string());
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
                _ = draining.wait_for(|drain| *drain) => core.drain().await.unwrap(),
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
        self.up(life, handle, drain, told).await
    }

    async fn up<T>(
        &self,
        life: Arc<Life>,
        handle: Handle<()>,
        drain: watch::Sender<bool>,
        told: oneshot::Receiver<Result<T, String>>,
    ) -> Start<T> {
        let started = tokio::select! {
            told = told => told.ok(),
            () = life.died() => None,
        };
        match started {
            Some(Ok(parts)) => {
                self.world.step(format!("{} is up", life.name));
                Start::Up(Process { life, handle, drain, parts })
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
        life.disk.cut_power(&self.world);
    }

    async fn end<T>(&self, process: Process<T>) {
        let Process { life, handle, parts, .. } = process;
        drop(parts);
        self.bury(&life, handle).await;
    }

    /// Stops a process in order, unless it crashes on the way.
    async fn stop<T>(&self, process: Process<T>) -> bool {
        let Process { life, handle, drain, parts } = process;
        drop(parts);
        self.world.step(format!("{} drains", life.name));
        drain.send_replace(true);
        tokio::pin!(handle);
        let in_order = tokio::select! {
            ended = &mut handle => ended.is_ok(),
            () = life.died() => false,
            () = self.world.context.sleep(Duration::from_secs(60)) => {
                panic!("{} does not end", life.name)
            }
        };
        handle.abort();
        if in_order {
            self.world.step(format!("{} has stopped", life.name));
        } else {
            life.disk.cut_power(&self.world);
        }
        in_order
    }
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
                    self.check_server(&process.parts.0).await;
                    let publisher = (process.life.clone(), process.parts.1.clone());
                    self.model.lock().unwrap().database = Some(process.parts.2);
                    *self.publisher.lock().unwrap() = Some(publisher);
                    cast.server = Some(process);
                    return;
                }
                Start::Crashed => {}
                Start::Refused(error) => panic!("the server does not start: {error}"),
            }
        }
    }

    async fn revive_client(&self, cast: &mut Cast, index: usize, crashed: Duration, in_order: bool) {
        let mut crash = (self.world.one_in(5)).then(|| Crash::AtPoll(self.world.draw(1, 400)));
        loop {
            match self.start_client(index, crash.take()).await {
                Start::Up(process) => {
                    let known = process.parts.known.newest();
                    let mut model = self.model.lock().unwrap();
                    model.restarted(index, known.as_ref(), crashed, in_order);
                    cast.clients[index] = Some(process);
                    return;
                }
                Start::Crashed => {}
                Start::Refused(error) => panic!("replica {index} does not start: {error}"),
            }
        }
    }

    /// Compares a server's log and database with what was promised.
    async fn check_server(&self, ledger: &Ledger<Machine>) {
        let bounds = ledger.log().bounds();
        let mut records = std::collections::BTreeMap::new();
        let mut wanted: Vec<u64> = (bounds.last.saturating_sub(40)..=bounds.last).collect();
        wanted.extend((0..20).map(|_| self.world.draw(bounds.first, bounds.last + 1)));
        for sequence in wanted.into_iter().filter(|sequence| *sequence >= bounds.first) {
            let commit = ledger.log().read(sequence).await.unwrap();
            records.insert(sequence, commit.checkpoint.checkpoint);
        }
        self.model.lock().unwrap().check_log(bounds.last, &records);
        self.check_values(ledger, 10).await;
    }

    /// Some acknowledged values are there; with `usize::MAX`, all.
    async fn check_values(&self, ledger: &Ledger<Machine>, count: usize) {
        if ledger.mode() == Mode::Compact || self.case.family == Family::Keyless {
            return;
        }
        let acknowledged = self.model.lock().unwrap().acknowledged.clone();
        let skip = self.world.draw(0, acknowledged.len() as u64 + 1);
        let skip = if count == usize::MAX { 0 } else { skip };
        for (key, known) in acknowledged.iter().skip(skip as usize).take(count) {
            let (head, value) = ledger.get(format!("key/{key}").as_bytes()).await.unwrap();
            if head.checkpoint.sequence < known.receipt.sequence {
                continue;
            }
            let value = value.unwrap_or_else(|| panic!("key {key} is lost: {known:?}"));
            let found = u64::from_be_bytes(value.as_ref().try_into().unwrap());
            assert!(found >= known.value, "key {key}: {known:?}, found {found}");
            assert!(
                self.model.lock().unwrap().attempted.contains(&found),
                "key {key} holds {found}, which nobody wrote"
            );
        }
    }

    /// Every value that was appended once and acknowledged is there once.
    async fn check_log_of_values(&self, ledger: &Ledger<Machine>) {
        if self.case.family != Family::Keyless || ledger.mode() == Mode::Compact {
            return;
        }
        let (size, mut from) = (ledger.head().checkpoint.size, 0);
        let mut found = std::collections::BTreeMap::<u64, usize>::new();
        while from < size {
            let max = NonZeroU64::new(500).unwrap();
            let (_, operations) = ledger.operations(from, max).await.unwrap();
            from += operations.len() as u64;
            for operation in operations {
                if let Operation::Append { value } = operation {
                    let value = u64::from_be_bytes(value.as_ref().try_into().unwrap());
                    *found.entry(value).or_default() += 1;
                }
            }
        }
        let model = self.model.lock().unwrap();
        for known in model.acknowledged.values() {
            assert!(found.contains_key(&known.value), "{known:?} is lost");
        }
        for (value, count) in found {
            assert!(model.attempted.contains(&value), "{value} was written by nobody");
            assert_eq!(count, 1, "{value} was written more than once");
        }
    }

    /// Lets time pass; whoever crashes is started again.
    async fn pass(&self, cast: &mut Cast, disorder: &Disorder, time: Duration) {
        let end = self.now() + time;
        loop {
            self.observe(cast, disorder).await;
            self.raise(cast).await;
            let left = end.saturating_sub(self.now());
            if left.is_zero() {
                return;
            }
            let look = Duration::from_millis(self.world.draw(1, 30));
            self.world.sleep(look.min(left)).await;
        }
    }

    /// Starts again who has crashed.
    async fn raise(&self, cast: &mut Cast) {
        if cast.server.as_ref().is_none_or(|server| server.life.is_dead()) {
            self.publisher.lock().unwrap().take();
            if let Some(server) = cast.server.take() {
                self.end(server).await;
            }
            // A disk that is full or broken is looked after first.
            self.server_disk.set_full(false);
            self.server_disk.set_fails_syncs(false);
            self.world.sleep(self.world.draw_time(Duration::from_secs(2))).await;
            self.revive_server(cast).await;
        }
        for index in 0..cast.clients.len() {
            if cast.clients[index].as_ref().is_some_and(|client| client.life.is_dead())
                && let Some(client) = cast.clients[index].take()
            {
                let crashed = self.now();
                self.end(client).await;
                self.client_disks[index].set_full(false);
                self.world.sleep(self.world.draw_time(Duration::from_secs(2))).await;
                self.revive_client(cast, index, crashed, false).await;
            }
        }
    }

    /// Looks at everybody, and tells the model.
    async fn observe(&self, cast: &Cast, disorder: &Disorder) {
        let now = self.now();
        if let Some(server) = cast.server.as_ref().filter(|server| !server.life.is_dead()) {
            let head = server.parts.0.head();
            assert!(server.parts.0.log().bounds().last >= head.checkpoint.sequence);
            self.model.lock().unwrap().saw(&head, now);
        }
        for (index, client) in cast.clients.iter().enumerate() {
            let Some(client) = client.as_ref().filter(|client| !client.life.is_dead()) else {
                continue;
            };
            let replica = &client.parts;
            let mut model = self.model.lock().unwrap();
            if let Some(head) = replica.head() {
                model.served(index, &head, now);
            }
            model.knows(index, replica.known.newest().as_ref(), now);
            if now > disorder.clocks_until {
                // Two heartbeats, the tolerated difference, and a scheduling delay.
                let allowed = HEARTBEAT * 2 + Duration::from_secs(11);
                model.check_lag(index, replica.lag_seconds_now(), allowed, now);
            }
        }
    }
}
