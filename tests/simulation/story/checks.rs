//! Looking at everybody while time passes, and at every promise in the end.

use super::{CONVERGE, Cast, Disorder, Story};
use crate::{Act, Relay, appended, machine::Machine};
use std::{collections::BTreeMap, num::NonZeroU64, sync::atomic::Ordering, time::Duration};
use syncd::{
    database::types::{Family, Mode},
    ledger::Ledger,
    runtime::Runtime as _,
};

impl Story {
    /// Compares a server's log and database with what was promised.
    pub(super) async fn check_server(&self, ledger: &Ledger<Machine>) {
        let bounds = ledger.log().bounds();
        let mut records = BTreeMap::new();
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
    pub(super) async fn check_values(&self, ledger: &Ledger<Machine>, count: usize) {
        if ledger.mode() == Mode::Compact || self.case.family == Family::Keyless {
            return;
        }
        let acknowledged = self.model.lock().unwrap().acknowledged.clone();
        let skip = self.world.draw(0, acknowledged.len() as u64 + 1);
        let skip = if count == usize::MAX { 0 } else { skip };
        for (key, known) in acknowledged.iter().skip(skip as usize).take(count) {
            let read = ledger.get(format!("key/{key}").as_bytes()).await;
            // One that gave way to another generation is closed.
            if read.is_err() && count < usize::MAX {
                return;
            }
            let (head, value) = read.unwrap();
            if head.checkpoint.sequence < known.receipt.sequence {
                continue;
            }
            let value = value.unwrap_or_else(|| panic!("key {key} is lost: {known:?}"));
            let found = u64::from_be_bytes(value.as_ref().try_into().unwrap());
            let model = self.model.lock().unwrap();
            assert!(model.may_hold(known.value, found), "key {key}: {known:?}, found {found}");
            assert!(
                model.attempted.contains(&found),
                "key {key} holds {found}, which nobody wrote"
            );
        }
    }

    /// Every value that was appended once and acknowledged is there once.
    pub(super) async fn check_log_of_values(&self, ledger: &Ledger<Machine>) {
        if self.case.family != Family::Keyless || ledger.mode() == Mode::Compact {
            return;
        }
        let from =
            if self.history.operations.is_some() { self.first_kept(ledger).await } else { 0 };
        let is_whole = from == 0;
        let mut found = BTreeMap::<u64, usize>::new();
        for value in appended(ledger, from).await {
            let value = u64::from_be_bytes(value.as_ref().try_into().unwrap());
            *found.entry(value).or_default() += 1;
        }
        let model = self.model.lock().unwrap();
        for known in model.acknowledged.values() {
            assert!(!is_whole || found.contains_key(&known.value), "{known:?} is lost");
        }
        found.remove(&u64::MAX);
        for (value, count) in found {
            assert!(model.attempted.contains(&value), "{value} was written by nobody");
            assert!(
                count == 1 || model.twice.contains(&value),
                "{value} was written more than once"
            );
        }
    }

    /// The first operation that was not pruned.
    async fn first_kept(&self, ledger: &Ledger<Machine>) -> u64 {
        let (mut pruned, mut kept) = (0, ledger.head().checkpoint.floor);
        while pruned < kept {
            let middle = pruned.midpoint(kept);
            match ledger.operations(middle, NonZeroU64::MIN).await {
                Ok(_) => kept = middle,
                Err(_) => pruned = middle + 1,
            }
        }
        kept
    }

    /// Lets time pass; whoever crashes is started again.
    pub(super) async fn pass(&self, cast: &mut Cast, disorder: &Disorder, time: Duration) {
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
                self.client_disks[index].set_fails_syncs(false);
                self.world.sleep(self.world.draw_time(Duration::from_secs(2))).await;
                self.revive_client(cast, index, crashed, false).await;
            }
        }
    }

    /// Looks at everybody, and tells the model.
    pub(super) async fn observe(&self, cast: &Cast, disorder: &Disorder) {
        let now = self.now();
        if let Some(server) = cast.server.as_ref().filter(|server| !server.life.is_dead()) {
            let head = server.parts.0.head();
            let bounds = server.parts.0.log().bounds();
            assert!(bounds.last >= head.checkpoint.sequence);
            if let Some(held) = server.parts.0.holds().sequence() {
                assert!(
                    bounds.first <= held,
                    "commit {held} is held, the log begins at {}",
                    bounds.first
                );
            }
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
                let moment = client.clock.moment();
                let describe = || {
                    let newest = replica.known.newest().map(|newest| newest.checkpoint);
                    let head = replica.head().map(|head| head.checkpoint.sequence);
                    let age = replica.known.signature_age(moment);
                    format!("at {now:?} it serves {head:?}, knows {newest:?}, of age {age:?}")
                };
                model.check_lag(index, replica.lag_seconds(moment), allowed, now, describe);
            }
        }
    }

    fn holds_anything(&self, cast: &Cast) -> bool {
        let servers = cast.server.iter().map(|server| server.parts.0.clone());
        let clients = cast.clients.iter().flatten();
        let replicas = clients.filter_map(|client| client.parts.ledger.load_full());
        servers
            .chain(replicas)
            .any(|ledger| ledger.holds().sequence().is_some() || ledger.is_exporting())
    }

    /// The faults are over: everything converges, and every promise is looked at.
    pub(super) async fn finish(&self, cast: &mut Cast, relay: &Relay) {
        self.world.step("the faults are over");
        self.authorized.send_replace(None);
        relay.act(Act::Honest);
        self.world.net.set_down(false);
        for disk in self.client_disks.iter().chain([&self.server_disk]) {
            disk.set_full(false);
            disk.set_fails_syncs(false);
            disk.set_busy(false);
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
        while self.holds_anything(cast) {
            assert!(self.now() < end, "everybody has caught up, and something is still held");
            self.pass(cast, &quiet, Duration::from_millis(200)).await;
        }
        let server = cast.server.as_ref().unwrap();
        if self.is_bulky {
            let kept = self.first_kept(&server.parts.0).await;
            self.world.step(format!("operations below {kept} were pruned"));
        }
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
        for index in 0..self.replicas() {
            let files = self.evidence.path().join(index.to_string()).join("evidence");
            assert!(!files.exists(), "there is evidence against an honest publisher");
        }
        for _ in 0..10 {
            self.ask_again(cast).await;
        }
    }
}
