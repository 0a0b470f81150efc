//! Simulated machines around the seeded runtime: each has a disk of its own that takes its time and
//! loses what was not synced, a clock of its own, and a way to others that delays and cuts. A
//! machine can crash at any await of any of its tasks.
//!
//! Everything is drawn from the seed of the [`World`], so a run is repeated bit for bit.

mod clock;
mod disk;
mod network;

pub use clock::Skew;
pub use disk::{Disk, SYNC_TIME_BUSY};
pub use network::Net;

use commonware_runtime::{
    Clock as _, Error, Handle, Metrics, Name, Resolver, Spawner, Supervisor, deterministic, signal,
    telemetry::metrics::{Metric, Registered},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::{
    collections::VecDeque,
    fmt::Display,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context as TaskContext, Poll},
    time::Duration,
};
use tokio::sync::Notify;

/// Steps that are remembered for the message of a failing seed.
const STEPS_REMEMBERED: usize = 60;

/// Where a machine may crash, beside every poll of its tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Before a write reaches the disk's cache.
    Write,
    /// A sync was asked for.
    Sync,
    /// A sync is done; its caller does not know yet.
    Synced,
    /// Before a blob or partition is removed.
    Remove,
    /// A blob or partition was removed.
    Removed,
    /// Before bytes are sent.
    Send,
    /// Something was acknowledged to somebody outside.
    Acknowledged,
}

/// When a machine crashes.
#[derive(Clone, Copy, Debug)]
pub enum Crash {
    /// At this poll of any of its tasks, counted from its start.
    AtPoll(u64),
    /// When a point is reached so many times, in a partition whose name contains the text.
    At(Point, u64, &'static str),
}

/// The last steps of a schedule, in words; outlives the run.
#[derive(Clone, Default)]
pub struct Steps(Arc<Mutex<VecDeque<String>>>);

impl Steps {
    /// A line each.
    pub fn text(&self) -> String {
        self.0.lock().unwrap().iter().fold(String::new(), |text, step| text + step + "\n")
    }
}

/// What all machines of a run share.
pub struct World {
    random: Mutex<StdRng>,
    steps: Steps,
    /// The network.
    pub net: Net,
    /// True time, which no machine can see.
    pub context: deterministic::Context,
}

impl World {
    pub fn new(context: deterministic::Context, seed: u64, steps: Steps) -> Arc<Self> {
        Arc::new(Self {
            random: Mutex::new(StdRng::seed_from_u64(seed ^ 0x5eed)),
            steps,
            net: Net::default(),
            context,
        })
    }

    /// A number from `from` up to, not including, `to`.
    pub fn draw(&self, from: u64, to: u64) -> u64 {
        self.random.lock().unwrap().random_range(from..to.max(from + 1))
    }

    /// Whether something happens that happens once in `n` times.
    pub fn one_in(&self, n: u64) -> bool {
        self.draw(0, n) == 0
    }

    /// A time from nothing to `max`.
    pub fn draw_time(&self, max: Duration) -> Duration {
        let micros = u64::try_from(max.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.draw(0, micros))
    }

    /// Remembers a step of the schedule, in words.
    pub fn step(&self, text: impl Display) {
        let now = self.context.current().duration_since(std::time::UNIX_EPOCH).unwrap();
        let mut steps = self.steps.0.lock().unwrap();
        if steps.len() == STEPS_REMEMBERED {
            steps.pop_front();
        }
        let line = format!("{:9.3} s  {text}", now.as_secs_f64());
        if std::env::var_os("SYNCD_SIMULATION_STEPS").is_some() {
            eprintln!("{line}");
        }
        steps.push_back(line);
    }

    pub async fn sleep(&self, time: Duration) {
        if !time.is_zero() {
            self.context.sleep(time).await;
        }
    }
}

/// One life of a machine: from its start to its crash.
pub struct Life {
    pub world: Arc<World>,
    pub name: String,
    pub disk: Disk,
    skew: Arc<Skew>,
    polls: AtomicU64,
    reached: AtomicU64,
    crash: Mutex<Option<Crash>>,
    is_dead: AtomicBool,
    died: Notify,
}

impl Life {
    pub fn new(world: Arc<World>, name: String, disk: Disk, skew: Arc<Skew>) -> Arc<Self> {
        Arc::new(Self {
            world,
            name,
            disk,
            skew,
            polls: AtomicU64::new(0),
            reached: AtomicU64::new(0),
            crash: Mutex::new(None),
            is_dead: AtomicBool::new(false),
            died: Notify::new(),
        })
    }

    /// Lets the machine crash when `crash` says.
    pub fn crash_at(&self, crash: Crash) {
        self.reached.store(0, Ordering::Relaxed);
        *self.crash.lock().unwrap() = Some(crash);
    }

    /// Takes back what [`Self::crash_at`] said.
    pub fn live_on(&self) {
        *self.crash.lock().unwrap() = None;
    }

    /// Polls of its tasks so far.
    pub fn polls(&self) -> u64 {
        self.polls.load(Ordering::Relaxed)
    }

    pub fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }

    /// Stops everything at once, as a power cut does.
    pub fn die(&self, why: impl Display) {
        if !self.is_dead.swap(true, Ordering::Relaxed) {
            self.world.step(format!("{} crashes {why}", self.name));
            self.died.notify_waiters();
            self.died.notify_one();
        }
    }

    /// Waits for the crash.
    pub async fn died(&self) {
        while !self.is_dead() {
            self.died.notified().await;
        }
    }

    /// A task of the machine is polled; false if the machine is dead.
    fn poll(&self) -> bool {
        let polls = self.polls.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(Crash::AtPoll(at)) = *self.crash.lock().unwrap()
            && polls >= at
            && !self.is_dead()
        {
            self.die(format!("at poll {polls}"));
        }
        !self.is_dead()
    }

    /// Notes that a point was reached in `place`.
    pub fn note(&self, point: Point, place: &str) {
        let Some(Crash::At(wanted, count, part)) = *self.crash.lock().unwrap() else { return };
        if wanted == point
            && place.contains(part)
            && self.reached.fetch_add(1, Ordering::Relaxed) + 1 == count
        {
            self.die(format!("at {point:?} {count} of '{place}'"));
        }
    }

    /// Reaches a point; does not return if that is the end of the machine.
    pub async fn reach(&self, point: Point, place: &str) {
        self.note(point, place);
        self.alive().await;
    }

    /// Does not return on a dead machine.
    pub async fn alive(&self) {
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
    }
}

/// The context of a task on a machine.
pub struct Machine {
    inner: deterministic::Context,
    pub life: Arc<Life>,
}

impl Machine {
    pub fn new(inner: deterministic::Context, life: Arc<Life>) -> Self {
        Self { inner, life }
    }

    fn with(&self, inner: deterministic::Context) -> Self {
        Self { inner, life: self.life.clone() }
    }
}

/// A task that stops where it is when its machine dies.
struct Mortal<F> {
    future: Pin<Box<F>>,
    life: Arc<Life>,
}

impl<F: Future> Future for Mortal<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<F::Output> {
        if !self.life.poll() {
            return Poll::Pending;
        }
        let output = self.future.as_mut().poll(context);
        // What it did with its last breath nobody sees.
        if self.life.is_dead() { Poll::Pending } else { output }
    }
}

impl Supervisor for Machine {
    fn name(&self) -> Name {
        self.inner.name()
    }

    fn child(&self, label: &'static str) -> Self {
        self.with(self.inner.child(label))
    }

    fn with_attribute(self, key: &'static str, value: impl Display) -> Self {
        Self { inner: self.inner.with_attribute(key, value), life: self.life }
    }
}

impl Spawner for Machine {
    fn shared(self, blocking: bool) -> Self {
        Self { inner: self.inner.shared(blocking), life: self.life }
    }

    fn dedicated(self) -> Self {
        Self { inner: self.inner.dedicated(), life: self.life }
    }

    fn spawn<F, Fut, T>(self, f: F) -> Handle<T>
    where
        F: FnOnce(Self) -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let life = self.life;
        self.inner.spawn(move |inner| {
            let future = Box::pin(f(Self { inner, life: life.clone() }));
            Mortal { future, life }
        })
    }

    async fn stop(self, value: i32, timeout: Option<Duration>) -> Result<(), Error> {
        self.inner.stop(value, timeout).await
    }

    fn stopped(&self) -> signal::Signal {
        self.inner.stopped()
    }
}

impl Metrics for Machine {
    fn register<N: Into<String>, H: Into<String>, M: Metric>(
        &self,
        name: N,
        help: H,
        metric: M,
    ) -> Registered<M> {
        self.inner.register(name, help, metric)
    }

    fn encode(&self) -> String {
        self.inner.encode()
    }
}

impl Resolver for Machine {
    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, Error> {
        host.parse().map(|address| vec![address]).map_err(|_| Error::ResolveFailed(host.into()))
    }
}

impl rand_core::TryRng for Machine {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        self.inner.try_next_u32()
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        self.inner.try_next_u64()
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.inner.try_fill_bytes(bytes)
    }
}

impl rand_core::TryCryptoRng for Machine {}
