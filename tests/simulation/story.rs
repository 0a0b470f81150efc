//! A publisher and its replicas on simulated machines, through what the seed draws: crashes at any
//! await, power cuts, slow and full disks, cut connections, lies, clocks that step, restarts in
//! order. A [model](super::model) remembers what was promised.

use super::{
    Act, Case, FromServer, Relay, address, client_setup, honest,
    machine::{Crash, Disk, Life, Machine, Point, Skew, Steps, World},
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
use syncd::watch;
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
    runtime::Runtime as _,
    server::{self, publisher::Source},
    wire::{Code, Refused, Response, ServerMessage},
};
use tokio::sync::oneshot;

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
    /// For its clocks.
    clock: Machine,
    handle: Handle<()>,
    drain: watch::Sender<bool>,
    parts: T,
}

type Server = (Arc<Ledger<Machine>>, server::publisher::Handle, DatabaseId);
type Client = Arc<Replica<Machine>>;
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
        let clock = machine.child("clock");
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
                biased;
                () = told_to_drain(&mut draining) => core.drain().await.unwrap(),
                claim = core.amnesia.recv() => panic!("the server forgot: {claim:?}"),
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
        let database = self.model.lock().unwrap().database.unwrap();
        let mut setup = client_setup(self.case, database);
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
                    tokio::select! {
                        biased;
                        () = self.check_server(&process.parts.0) => {}
                        () = process.life.died() => {}
                    }
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
                // Two heartbeats as a replica takes them before it is told how often they come, the
                // tolerated difference, and a delay.
                let allowed = Duration::from_secs(25);
                model.check_lag(index, replica.lag_seconds(client.clock.moment()), allowed, now);
            }
        }
    }
}

impl Story {
    /// A writer, for as long as the story lasts. What it is told goes to the model.
    async fn write(context: deterministic::Context, story: Arc<Self>, writer: u64) {
        let mut number = 0u64;
        while !story.is_over.load(Ordering::Relaxed) {
            number += 1;
            story.write_once(writer, number).await;
            let pause = match story.world.draw(0, 20) {
                0 => Duration::from_millis(story.world.draw(100, 2000)),
                1..=12 => Duration::ZERO,
                _ => Duration::from_millis(story.world.draw(1, 20)),
            };
            context.sleep(pause.max(Duration::from_micros(100))).await;
        }
    }

    async fn write_once(&self, writer: u64, number: u64) {
        let value = writer * 1_000_000 + number;
        let overwrites = matches!(self.case.family, Family::Any | Family::Current);
        let key = if overwrites { writer * 100 + number % KEYS } else { value };
        let idempotency = self
            .world
            .one_in(2)
            .then(|| (format!("request-{value}").into_bytes(), Digest([writer as u8; 32])));
        let mut changes = vec![super::write(self.case, key, value)];
        if overwrites && self.world.one_in(8) {
            // Of two changes of one key, the later one counts.
            changes.insert(0, super::write(self.case, key, u64::MAX));
        }
        let request = WriteRequest { changes, idempotency };
        self.model.lock().unwrap().attempted.insert(value);
        // One that may be tried again is, until it is answered.
        let tries = if request.idempotency.is_some() { 50 } else { 1 };
        for _ in 0..tries {
            let running = self.publisher.lock().unwrap().clone();
            let Some((life, publisher)) = running else {
                self.world.sleep(Duration::from_millis(20)).await;
                continue;
            };
            let answer = tokio::select! {
               biased;
                answer = publisher.write(request.clone(), Source::Api) => answer,
                () = life.died() => Err(WriteError::Unavailable("it died".into())),
            };
            match answer {
                Ok(receipt) => {
                    let mut model = self.model.lock().unwrap();
                    model.acknowledge(key, value, &receipt);
                    if request.idempotency.is_some() {
                        model.answered.push(Answered { request, receipt });
                    }
                    drop(model);
                    // The power may go out right after somebody was told.
                    life.note(Point::Acknowledged, "");
                    return;
                }
                // Of a key that is set once: by an earlier try.
                Err(WriteError::Conflict(_)) => return,
                Err(_) => self.world.sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Asks for an answered request again: it is answered the same while its record is kept.
    async fn ask_again(&self, cast: &Cast) {
        let Some(server) = &cast.server else { return };
        let first = server.parts.0.log().bounds().first;
        let promised = |answered: &&Answered| answered.receipt.sequence >= first;
        let promised: Vec<_> =
            self.model.lock().unwrap().answered.iter().filter(promised).cloned().collect();
        if promised.is_empty() {
            return;
        }
        let index = self.world.draw(0, promised.len() as u64) as usize;
        let Answered { request, receipt } = promised[index].clone();
        let asking = server.parts.1.write(request, Source::Api);
        let answer = tokio::select! {
           biased;
            answer = asking => answer,
            () = server.life.died() => return,
        };
        if let Ok(again) = answer {
            // The record may have been trimmed while this was on its way.
            let first = server.parts.0.log().bounds().first;
            assert!(
                again.sequence == receipt.sequence || first > receipt.sequence,
                "a request was executed twice: {receipt:?}, {again:?}"
            );
        }
    }

    /// A key that is set once stays as it is.
    async fn set_again(&self, cast: &Cast) {
        if self.case.family != Family::Immutable {
            return;
        }
        let Some(server) = &cast.server else { return };
        let acknowledged = self.model.lock().unwrap().acknowledged.clone();
        let skip = self.world.draw(0, acknowledged.len() as u64 + 1) as usize;
        let Some(key) = acknowledged.keys().nth(skip) else { return };
        let changes = vec![super::write(self.case, *key, u64::MAX)];
        let request = WriteRequest { changes, idempotency: None };
        let answer = tokio::select! {
           biased;
            answer = server.parts.1.write(request, Source::Api) => answer,
            () = server.life.died() => return,
        };
        assert!(answer.is_err(), "key {key} was set twice");
    }

    /// A proof of a key, from a replica of `current`.
    async fn prove(&self, cast: &Cast) {
        if self.case.family != Family::Current {
            return;
        }
        let client = cast.clients.iter().flatten().find(|client| !client.life.is_dead());
        let Some(client) = client else { return };
        let Some(ledger) = client.parts.ledger.load_full() else { return };
        let ledger_life = client.life.clone();
        let key =
            format!("key/{}", self.world.draw(0, WRITERS) * 100 + self.world.draw(0, KEYS + 2));
        let proving = tokio::select! {
            biased;
            proving = ledger.prove_key(key.as_bytes()) => proving,
            () = ledger_life.died() => return,
        };
        let Ok((head, proof)) = proving else { return };
        self.model.lock().unwrap().saw(&head, self.now());
        let root = head.checkpoint.root;
        let kind = ledger.kind();
        verify_key(kind, root, key.as_bytes(), proof.value.as_deref(), proof.proof.clone())
            .unwrap();
        let wrong = proof.value.as_deref().map_or(Some(&b"wrong"[..]), |_| None);
        assert!(verify_key(kind, root, key.as_bytes(), wrong, proof.proof).is_err());
    }

    /// Something happens.
    async fn act(&self, cast: &mut Cast, relay: &Relay, disorder: &mut Disorder) {
        let world = &self.world;
        let index = world.draw(0, REPLICAS as u64) as usize;
        match world.draw(0, 16) {
            0..=3 => self.crash_server(cast, disorder).await,
            4 | 5 => self.crash_client(cast, disorder, index).await,
            6 => {
                if let Some(server) = cast.server.take() {
                    self.publisher.lock().unwrap().take();
                    self.stop(server).await;
                    world.sleep(world.draw_time(Duration::from_secs(3))).await;
                    self.revive_server(cast).await;
                }
            }
            7 => self.absence(cast, disorder, index).await,
            8 => {
                world.step("every connection is cut");
                world.net.cut(world);
            }
            9 => {
                world.step("the network is down");
                world.net.set_down(true);
                world.net.cut(world);
                let time = Duration::from_millis(world.draw(100, 40_000));
                self.pass(cast, disorder, time).await;
                world.net.set_down(false);
                world.step("the network is up");
            }
            10 | 11 => self.lies(cast, relay, disorder).await,
            12 => self.clock_steps(cast, disorder, index).await,
            13 => {
                let (disk, name) = match world.draw(0, 2) {
                    0 => (&self.server_disk, "the publisher's"),
                    _ => (&self.client_disks[index], "a replica's"),
                };
                world.step(format!("{name} disk is full"));
                disk.set_full(true);
                self.pass(cast, disorder, Duration::from_millis(world.draw(10, 3000))).await;
                disk.set_full(false);
            }
            14 => {
                for _ in 0..10 {
                    self.ask_again(cast).await;
                }
                self.set_again(cast).await;
            }
            _ => self.prove(cast).await,
        }
        let time = match world.draw(0, 4) {
            0 => Duration::from_millis(world.draw(1, 50)),
            1 | 2 => Duration::from_millis(world.draw(50, 1000)),
            _ => Duration::from_millis(world.draw(1000, 6000)),
        };
        self.pass(cast, disorder, time).await;
    }

    async fn crash_server(&self, cast: &mut Cast, disorder: &Disorder) {
        let world = &self.world;
        let crash = match world.draw(0, 10) {
            0..=2 => Crash::At(Point::Acknowledged, world.draw(1, 12), ""),
            3 => Crash::At(Point::Sync, world.draw(1, 12), "commits"),
            4 => Crash::At(Point::Synced, world.draw(1, 12), "commits"),
            5 => Crash::At(Point::Write, world.draw(1, 30), ""),
            6 => Crash::At(Point::Remove, 1, "commits"),
            7 => Crash::At(Point::Synced, world.draw(1, 20), "-operations"),
            8 => Crash::At(Point::Send, world.draw(1, 30), ""),
            _ => Crash::AtPoll(0),
        };
        let Some(server) = &cast.server else { return };
        let crash = match crash {
            Crash::AtPoll(_) => Crash::AtPoll(server.life.polls() + world.draw(1, 2000)),
            crash => crash,
        };
        world.step(format!("the publisher will crash: {crash:?}"));
        server.life.crash_at(crash);
        self.pass(cast, disorder, Duration::from_millis(world.draw(50, 2500))).await;
    }

    async fn crash_client(&self, cast: &mut Cast, disorder: &Disorder, index: usize) {
        let world = &self.world;
        let Some(client) = &cast.clients[index] else { return };
        let crash = match world.draw(0, 6) {
            0 => Crash::At(Point::Sync, world.draw(1, 20), "commits"),
            1 => Crash::At(Point::Synced, world.draw(1, 20), "commits"),
            2 => Crash::At(Point::Write, world.draw(1, 40), ""),
            3 => Crash::At(Point::Write, world.draw(1, 3), "generations"),
            4 => Crash::At(Point::Remove, world.draw(1, 4), ""),
            _ => Crash::AtPoll(client.life.polls() + world.draw(1, 3000)),
        };
        world.step(format!("replica {index} will crash: {crash:?}"));
        client.life.crash_at(crash);
        self.pass(cast, disorder, Duration::from_millis(world.draw(50, 2500))).await;
    }

    /// A replica is away, perhaps until the log no longer reaches back.
    async fn absence(&self, cast: &mut Cast, disorder: &Disorder, index: usize) {
        let Some(client) = cast.clients[index].take() else { return };
        let in_order = self.stop(client).await;
        let crashed = self.now();
        let time = Duration::from_millis(self.world.draw(10, 12_000));
        self.pass(cast, disorder, time).await;
        self.revive_client(cast, index, crashed, in_order).await;
    }

    async fn clock_steps(&self, cast: &mut Cast, disorder: &mut Disorder, index: usize) {
        let world = &self.world;
        let (skew, name) = match world.draw(0, 3) {
            0 => (&self.client_skews[index], "a replica's"),
            _ => (&self.server_skew, "the publisher's"),
        };
        let range = [2_000, 60_000, 7_200_000][world.draw(0, 3) as usize];
        let by = world.draw(0, 2 * range) as i64 - range as i64;
        world.step(format!("{name} clock steps by {by} ms"));
        disorder.clocks_until = Duration::MAX;
        skew.step(by);
        let time = Duration::from_millis(world.draw(100, 8000));
        self.pass(cast, disorder, time).await;
        world.step(format!("{name} clock is right again"));
        skew.step(-by);
        disorder.clocks_until = self.now() + Duration::from_secs(30);
    }

    /// Whoever is between lies for a while.
    async fn lies(&self, cast: &mut Cast, relay: &Relay, disorder: &Disorder) {
        let world = self.world.clone();
        let seen = Mutex::new(Vec::new());
        let habit = world.draw(0, 8);
        world.step(format!("the relay lies, by habit {habit}"));
        let liar = world.clone();
        relay.tamper(move |message| lie(&liar, habit, &mut seen.lock().unwrap(), message));
        let time = Duration::from_millis(world.draw(200, 6000));
        self.pass(cast, disorder, time).await;
        relay.act(Act::Honest);
        world.step("the relay is honest");
    }

    /// The faults are over: everything converges, and every promise is looked at.
    async fn finish(&self, cast: &mut Cast, relay: &Relay) {
        self.world.step("the faults are over");
        relay.act(Act::Honest);
        self.world.net.set_down(false);
        for disk in self.client_disks.iter().chain([&self.server_disk]) {
            disk.set_full(false);
            disk.set_fails_syncs(false);
        }
        let quiet = Disorder { clocks_until: Duration::MAX };
        self.pass(cast, &quiet, Duration::from_secs(2)).await;
        self.is_over.store(true, Ordering::Relaxed);
        let lives = cast.clients.iter().flatten().map(|client| &client.life);
        lives.chain(cast.server.iter().map(|server| &server.life)).for_each(|life| life.live_on());
        let end = self.now() + CONVERGE;
        loop {
            self.pass(cast, &quiet, Duration::from_millis(200)).await;
            let server = cast.server.as_ref().unwrap();
            let wanted = server.parts.0.head().checkpoint;
            let lacking: Vec<_> = cast
                .clients
                .iter()
                .flatten()
                .filter(|client| {
                    client.parts.head().is_none_or(|head| !head.checkpoint.same_state(&wanted))
                })
                .map(|client| client.parts.status(client.clock.moment()))
                .collect();
            if lacking.is_empty() {
                break;
            }
            assert!(self.now() < end, "not converged to {wanted:?}: {lacking:?}");
        }
        let server = cast.server.as_ref().unwrap();
        self.check_values(&server.parts.0, usize::MAX).await;
        self.check_log_of_values(&server.parts.0).await;
        for client in cast.clients.iter().flatten() {
            let ledger = client.parts.ledger.load_full().unwrap();
            self.check_values(&ledger, usize::MAX).await;
            self.check_log_of_values(&ledger).await;
            assert_eq!(
                client.parts.metrics.equivocations.get(),
                0,
                "an honest publisher is accused"
            );
        }
        for index in 0..REPLICAS {
            let files = self.evidence.path().join(index.to_string()).join("evidence");
            assert!(!files.exists(), "there is evidence against an honest publisher");
        }
        for _ in 0..10 {
            self.ask_again(cast).await;
        }
    }
}

/// What a liar without the publisher's key may do to a message.
fn lie(world: &World, habit: u64, seen: &mut Vec<FromServer>, message: FromServer) -> Vec<Bytes> {
    if !world.one_in(3) {
        remember(world, seen, &message);
        return honest(message);
    }
    let message = match (habit, message) {
        // A value of a commit is another one.
        (
            0 | 1,
            FromServer::Message(ServerMessage::Response {
                id,
                response: Response::Commit { mut commit, trace },
            }),
        ) => {
            for change in &mut commit.changes {
                if let Change::Put { value, .. } | Change::Append { value } = change {
                    value[0] ^= 1;
                }
            }
            FromServer::Message(ServerMessage::Response {
                id,
                response: Response::Commit { commit, trace },
            })
        }
        // A checkpoint says something else than was signed.
        (
            2,
            FromServer::Message(ServerMessage::Response {
                id,
                response: Response::Checkpoint(mut signed),
            }),
        ) => {
            match world.draw(0, 4) {
                0 => signed.checkpoint.sequence += 1,
                1 => signed.checkpoint.size += 1,
                2 => signed.checkpoint.root.0[0] ^= 1,
                _ => signed.checkpoint.signed_at_ms += 1000,
            }
            FromServer::Message(ServerMessage::Response {
                id,
                response: Response::Checkpoint(signed),
            })
        }
        // Something of before, again.
        (3 | 4, message) => match seen.get(world.draw(0, seen.len() as u64 + 1) as usize) {
            Some(old) => retell(old, &message),
            None => message,
        },
        // No answer but a refusal.
        (5, FromServer::Message(ServerMessage::Response { id, .. })) => {
            let codes = [Code::Pruned, Code::Ahead, Code::Busy, Code::Internal];
            let code = codes[world.draw(0, 4) as usize];
            let refused =
                Refused::later(code, "so it says", Duration::from_secs(world.draw(0, 3600)));
            FromServer::Message(ServerMessage::Response {
                id,
                response: Response::Refused(refused),
            })
        }
        // Nothing.
        (6, _) => return Vec::new(),
        // A flipped bit.
        (_, message) => {
            let [frame]: [Bytes; 1] = honest(message).try_into().unwrap();
            let mut bytes = frame.to_vec();
            let at = world.draw(0, bytes.len() as u64) as usize;
            bytes[at] ^= 1 << world.draw(0, 8);
            return vec![bytes.into()];
        }
    };
    honest(message)
}

/// Keeps a message for later.
fn remember(world: &World, seen: &mut Vec<FromServer>, message: &FromServer) {
    let copy = match message {
        FromServer::Reply(reply) => FromServer::Reply(reply.clone()),
        FromServer::Message(message) => FromServer::Message(message.clone()),
    };
    if seen.len() < 40 {
        seen.push(copy);
    } else if world.one_in(8) {
        let at = world.draw(0, 40) as usize;
        seen[at] = copy;
    }
}

/// An old message as the answer to what is asked now.
fn retell(old: &FromServer, now: &FromServer) -> FromServer {
    match (old, now) {
        (FromServer::Reply(reply), FromServer::Reply(_)) => FromServer::Reply(reply.clone()),
        (
            FromServer::Message(ServerMessage::Response { response, .. }),
            FromServer::Message(ServerMessage::Response { id, .. }),
        ) => FromServer::Message(ServerMessage::Response { id: *id, response: response.clone() }),
        (_, FromServer::Reply(reply)) => FromServer::Reply(reply.clone()),
        (_, FromServer::Message(message)) => FromServer::Message(message.clone()),
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

async fn tell(context: deterministic::Context, seed: u64, world: Arc<World>) {
    let short = world.one_in(2);
    // Some segments of the log, so that it is trimmed all the time; or all of it.
    let bytes = if short { 60_000 } else { 1 << 30 };
    let history = History { log: Retention { bytes, ..super::HISTORY.log }, operations: None };
    let skew = |world: &World| {
        Arc::new(Skew::new(world.draw(0, 2000) as i64 - 1000, world.draw(0, 200) as i64 - 100))
    };
    let story = Arc::new(Story {
        case: case(seed),
        history,
        model: Arc::default(),
        server_disk: Disk::default(),
        server_skew: skew(&world),
        client_disks: (0..REPLICAS).map(|_| Disk::default()).collect(),
        client_skews: (0..REPLICAS).map(|_| skew(&world)).collect(),
        lives: AtomicU64::new(0),
        publisher: Arc::default(),
        is_over: Arc::default(),
        evidence: tempfile::tempdir().unwrap(),
        world: world.clone(),
        context: context.child("story"),
    });
    story.model.lock().unwrap().replicas = (0..REPLICAS).map(|_| Default::default()).collect();
    let (between, _) = story.machine("relay", &Disk::default(), &Arc::new(Skew::new(0, 0)));
    let listener = between.bind(address(RELAY)).await.unwrap();
    let relay = Relay::spawn(between, listener, address(SERVER), PrivateKey::from_seed(1));
    let mut cast = Cast::default();
    story.revive_server(&mut cast).await;
    for index in 0..REPLICAS {
        cast.clients.push(None);
        story.revive_client(&mut cast, index, Duration::ZERO, true).await;
    }
    for writer in 0..WRITERS {
        let story = story.clone();
        context.child("writer").spawn(move |context| Story::write(context, story, writer));
    }
    let mut disorder = Disorder::default();
    for _ in 0..world.draw(6, 16) {
        story.act(&mut cast, &relay, &mut disorder).await;
    }
    story.finish(&mut cast, &relay).await;
    story.publisher.lock().unwrap().take();
    if let Some(server) = cast.server.take() {
        story.stop(server).await;
    }
}

/// Runs one seed; what failed, with the last steps and the command that repeats it.
pub fn run(seed: u64) -> Result<(), String> {
    let config = deterministic::Config::new()
        .with_seed(seed)
        .with_timeout(Some(Duration::from_secs(24 * 3600)));
    let steps = Steps::default();
    let kept = steps.clone();
    let work = move || {
        deterministic::Runner::new(config).start(|context| async move {
            let world = World::new(context.child("world"), seed, steps);
            tell(context, seed, world).await;
        });
    };
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or(panic.downcast_ref::<&str>().map(ToString::to_string));
        format!(
            "seed {seed}: {}\n{}repeat it with: SYNCD_SIMULATION_SEED={seed} cargo test --test simulation story -- --nocapture",
            text.unwrap_or_default(),
            kept.text()
        )
    })
}

#[test]
fn stories() {
    let seeds = match std::env::var("SYNCD_SIMULATION_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..super::seeds(16)).collect(),
    };
    for seed in seeds {
        if let Err(text) = run(seed) {
            panic!("{text}");
        }
    }
}
