//! What happens in a story.

use super::{Cast, Client, Disorder, Process, Story, lies};
use crate::{
    Act, Relay,
    machine::{Crash, Disk, Point},
};
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use std::{
    sync::{Mutex, atomic::Ordering},
    time::Duration,
};

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    CrashServer,
    CrashClient,
    Restart,
    Absence,
    Cut,
    NetworkDown,
    Lies,
    ClockSteps,
    DiskFull,
    SyncsFail,
    DiskBusy,
    AskAgain,
    Prove,
    Read,
    Export,
    Rotate,
    Epoch,
    Restore,
    Revoke,
}

impl Deed {
    /// All, with how often each happens beside the others.
    pub const ALL: [(Self, u64); 19] = [
        (Self::CrashServer, 8),
        (Self::CrashClient, 4),
        (Self::Restart, 2),
        (Self::Absence, 3),
        (Self::Cut, 2),
        (Self::NetworkDown, 2),
        (Self::Lies, 4),
        (Self::ClockSteps, 2),
        (Self::DiskFull, 2),
        (Self::SyncsFail, 1),
        (Self::DiskBusy, 3),
        (Self::AskAgain, 2),
        (Self::Prove, 2),
        (Self::Read, 2),
        (Self::Export, 2),
        (Self::Rotate, 2),
        (Self::Epoch, 1),
        (Self::Restore, 3),
        (Self::Revoke, 1),
    ];

    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    pub fn parse(name: &str) -> Self {
        let known = Self::ALL.iter().find(|(deed, _)| deed.name() == name);
        known.unwrap_or_else(|| panic!("'{name}' is no deed")).0
    }
}

impl Story {
    fn draw_deed(&self) -> Option<Deed> {
        // Where operations are pruned, somebody reads them for long.
        if self.is_bulky && self.world.one_in(4) {
            return (!self.cut.without.contains(&Deed::Export)).then_some(Deed::Export);
        }
        let total = Deed::ALL.iter().map(|(_, weight)| weight).sum();
        let mut at = self.world.draw(0, total);
        for (deed, weight) in Deed::ALL {
            if at < weight {
                return (!self.cut.without.contains(&deed)).then_some(deed);
            }
            at -= weight;
        }
        None
    }

    /// Something happens.
    pub(super) async fn act(&self, cast: &mut Cast, relay: &Relay, disorder: &mut Disorder) {
        let world = &self.world;
        let index = world.draw(0, self.replicas() as u64) as usize;
        match self.draw_deed() {
            None => {}
            Some(Deed::CrashServer) => self.crash_server(cast, disorder).await,
            Some(Deed::CrashClient) => self.crash_client(cast, disorder, index).await,
            Some(Deed::Restart) => {
                self.stop_server(cast).await;
                world.sleep(world.draw_time(Duration::from_secs(3))).await;
                self.revive_server(cast).await;
            }
            Some(Deed::Absence) => self.absence(cast, disorder, index).await,
            Some(Deed::Cut) => {
                world.step("every connection is cut");
                world.net.cut(world);
            }
            Some(Deed::NetworkDown) => {
                world.step("the network is down");
                world.net.set_down(true);
                world.net.cut(world);
                let time = Duration::from_millis(world.draw(100, 40_000));
                self.pass(cast, disorder, time).await;
                world.net.set_down(false);
                world.step("the network is up");
            }
            Some(Deed::Lies) => self.lies(cast, relay, disorder).await,
            Some(Deed::ClockSteps) => self.clock_steps(cast, disorder, index).await,
            Some(Deed::DiskFull) => {
                self.disk_trouble(cast, disorder, index, "is full", 3000, Disk::set_full).await;
            }
            Some(Deed::SyncsFail) => {
                self.disk_trouble(cast, disorder, index, "fails", 2000, Disk::set_fails_syncs)
                    .await;
            }
            Some(Deed::DiskBusy) => self.disk_busy(cast, disorder, index).await,
            Some(Deed::AskAgain) => {
                for _ in 0..10 {
                    self.ask_again(cast).await;
                }
                self.set_again(cast).await;
            }
            Some(Deed::Prove) => {
                for _ in 0..5 {
                    self.prove(cast).await;
                }
            }
            Some(Deed::Read) => self.read(cast).await,
            Some(Deed::Export) => self.export(cast, disorder).await,
            Some(Deed::Rotate) => self.rotate(cast).await,
            Some(Deed::Epoch) => self.new_epoch(cast, disorder).await,
            Some(Deed::Restore) => self.restore(cast, disorder).await,
            Some(Deed::Revoke) => self.revoke(cast, disorder).await,
        }
        let time = match world.draw(0, 4) {
            0 => Duration::from_millis(world.draw(1, 50)),
            1 | 2 => Duration::from_millis(world.draw(50, 1000)),
            _ => Duration::from_millis(world.draw(1000, 6000)),
        };
        self.pass(cast, disorder, time).await;
    }

    /// Somebody's disk is in trouble for a while.
    async fn disk_trouble(
        &self,
        cast: &mut Cast,
        disorder: &Disorder,
        index: usize,
        trouble: &str,
        longest_ms: u64,
        set: fn(&Disk, bool),
    ) {
        let (disk, name) = match self.world.draw(0, 2) {
            0 => (&self.server_disk, "the publisher's"),
            _ => (&self.client_disks[index], "a replica's"),
        };
        self.world.step(format!("{name} disk {trouble}"));
        set(disk, true);
        let time = Duration::from_millis(self.world.draw(10, longest_ms));
        self.pass(cast, disorder, time).await;
        set(disk, false);
    }

    /// Somebody's database is long in becoming durable, and the power may go out as soon as the log has been trimmed.
    async fn disk_busy(&self, cast: &mut Cast, disorder: &Disorder, index: usize) {
        let is_server = self.world.one_in(4);
        let (disk, name) = match is_server {
            true => (&self.server_disk, "the publisher's"),
            false => (&self.client_disks[index], "a replica's"),
        };
        let of = |cast: &Cast| {
            let server = cast.server.as_ref().map(|of| (of.life.clone(), Some(of.parts.0.clone())));
            let client = cast.clients[index].as_ref();
            let client = client.map(|of| (of.life.clone(), of.parts.ledger.load_full()));
            let (life, ledger) = if is_server { server } else { client }?;
            Some((life, ledger?.log().bounds().first))
        };
        self.world.step(format!("{name} disk is busy"));
        disk.set_busy(true);
        let end = self.now() + Duration::from_millis(self.world.draw(2000, 12_000));
        let mut trimmed_to = None;
        while self.now() < end {
            self.pass(cast, disorder, Duration::from_millis(100)).await;
            let Some((life, first)) = of(cast) else { continue };
            let is_trimmed = trimmed_to.replace(first).is_some_and(|before| before < first);
            if is_trimmed && !self.world.one_in(4) {
                life.die("right after its log was trimmed");
            }
        }
        disk.set_busy(false);
    }

    async fn crash_server(&self, cast: &mut Cast, disorder: &Disorder) {
        let world = &self.world;
        let crash = match world.draw(0, 10) {
            0..=2 => Crash::At(Point::Acknowledged, world.draw(1, 12), ""),
            3 => Crash::At(Point::Sync, world.draw(1, 12), "commits"),
            4 => Crash::At(Point::Synced, world.draw(1, 12), "commits"),
            5 => Crash::At(Point::Write, world.draw(1, 30), ""),
            6 if world.one_in(2) => Crash::At(Point::Remove, 1, "commits"),
            6 => Crash::At(Point::Removed, 1, "commits"),
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
        self.follow_the_keys(index, &client);
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
        let stolen = self.stolen_key(cast);
        let habit = match stolen {
            Some(_) if !world.one_in(4) => lies::THIEF,
            _ => world.draw(0, lies::HABITS),
        };
        world.step(format!("the relay lies, by habit {habit}"));
        let liar = world.clone();
        relay.tamper(move |message| {
            lies::lie(&liar, habit, stolen.as_ref(), &mut seen.lock().unwrap(), message)
        });
        let time = Duration::from_millis(world.draw(200, 6000));
        self.pass(cast, disorder, time).await;
        relay.act(Act::Honest);
        world.step("the relay is honest");
    }

    /// A key that was retired, where every replica has learned that.
    fn stolen_key(&self, cast: &Cast) -> Option<PrivateKey> {
        let seed = self.publisher_seed.load(Ordering::Relaxed).checked_sub(1)?;
        let stolen = PrivateKey::from_seed(seed);
        let is_retired = |client: &Process<Client>| {
            let rotations = client.parts.known.rotations();
            rotations.0.iter().any(|rotation| rotation.retired == stolen.public_key())
        };
        let all = cast.clients.iter().all(|client| client.as_ref().is_some_and(is_retired));
        all.then_some(stolen)
    }
}
