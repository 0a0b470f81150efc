//! What an operator does, interrupted by crashes and done again.

use super::{Cast, Client, Disorder, Process, Start, Story};
use crate::machine::{Crash, Disk, Machine, Skew};
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use commonware_runtime::{Spawner as _, Supervisor as _};
use std::{
    collections::HashSet,
    fmt::Debug,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use syncd::runtime::Runtime as _;
use syncd::{
    client,
    database::types::DatabaseId,
    server::{epoch, rotate},
};
use tokio::sync::oneshot;

/// How long a replica may take to show a restored server what it forgot.
const REMINDED_WITHIN: Duration = Duration::from_secs(90);
/// How long what was on its way may still arrive after a client lost its right to connect.
const CUT_OFF_WITHIN: Duration = Duration::from_secs(5);

impl Story {
    /// Runs a command on the storage of a stopped daemon, again as long as it crashes.
    async fn operate<T, E, F>(
        &self,
        name: &'static str,
        disk: &Disk,
        skew: &Arc<Skew>,
        work: impl Fn(Machine) -> F,
    ) -> T
    where
        T: Send + 'static,
        E: Debug + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        for tries in 0.. {
            let (machine, life) = self.machine(name, disk, skew);
            if tries < 3 && self.world.one_in(2) {
                life.crash_at(Crash::AtPoll(self.world.draw(1, 300)));
            }
            let (tell, told) = oneshot::channel();
            let running = work(machine.child("operator"));
            let handle = machine.spawn(move |_| async move {
                let _ = tell.send(running.await);
            });
            let done = tokio::select! {
                biased;
                done = told => done.ok(),
                () = life.died() => None,
            };
            let done = done.filter(|_| !life.is_dead());
            self.bury(&life, handle).await;
            match done {
                Some(Ok(done)) => {
                    self.world.step(format!("{name} is done"));
                    return done;
                }
                Some(Err(error)) => panic!("{name}: {error:?}"),
                None => self.world.step(format!("{name} was interrupted")),
            }
        }
        unreachable!("the last tries do not crash")
    }

    /// Stops the publisher; whether it ended in order, and what its log's first record was.
    pub(super) async fn stop_server(&self, cast: &mut Cast) -> Option<u64> {
        self.publisher.lock().unwrap().take();
        let server = cast.server.take()?;
        let ledger = server.parts.0.clone();
        self.stop(server).await.then(|| ledger.log().bounds().first)
    }

    /// Another key signs from the next commit on.
    pub(super) async fn rotate(&self, cast: &mut Cast) {
        self.stop_server(cast).await;
        let retired = self.publisher();
        let seed = self.publisher_seed.fetch_add(1, Ordering::Relaxed) + 1;
        let successor = PrivateKey::from_seed(seed);
        let rotated = self
            .operate("rotate_key", &self.server_disk, &self.server_skew, |machine| {
                let (retired, successor) = (retired.clone(), successor.clone());
                async move { rotate::hand_over(&machine, &retired, &successor).await }
            })
            .await;
        self.world.step(format!("a new key signs from commit {} on", rotated.from));
        self.model.lock().unwrap().rotated(rotated.from, successor.public_key());
        // What signs there is the old key.
        self.copy.lock().unwrap().take();
        self.revive_server(cast).await;
    }

    /// A replica whose operator has seen that it knows of the present key may be told to trust that.
    pub(super) fn follow_the_keys(&self, index: usize, client: &Process<Client>) {
        let present = self.publisher().public_key();
        let rotations = client.parts.known.rotations();
        if rotations.0.last().is_some_and(|last| last.successor == present) && self.world.one_in(2)
        {
            self.world.step(format!("replica {index} is configured with the present key"));
            self.model.lock().unwrap().trust(index, present);
        }
    }

    /// A new identity for the database, which replicas take by hand only.
    pub(super) async fn new_epoch(&self, cast: &mut Cast, disorder: &Disorder) {
        let Some(first) = self.stop_server(cast).await else {
            self.revive_server(cast).await;
            return;
        };
        let publisher = self.publisher();
        let begun = self
            .operate("new_epoch", &self.server_disk, &self.server_skew, |machine| {
                let publisher = publisher.clone();
                async move { epoch::begin(&machine, &publisher, false, |_| {}).await }
            })
            .await;
        assert_eq!(begun.discarded, None, "a storage that is whole was not read");
        self.model.lock().unwrap().new_epoch(begun.database, publisher.public_key(), first);
        self.copy.lock().unwrap().take();
        self.revive_server(cast).await;
        let time = Duration::from_millis(self.world.draw(10, 8000));
        self.pass(cast, disorder, time).await;
        for index in 0..self.replicas() {
            self.adopt(cast, index, begun.database).await;
        }
        for _ in 0..10 {
            self.ask_again(cast).await;
        }
    }

    async fn adopt(&self, cast: &mut Cast, index: usize, database: DatabaseId) {
        if let Some(client) = cast.clients[index].take() {
            self.stop(client).await;
        }
        let (disk, skew) = (&self.client_disks[index], &self.client_skews[index]);
        disk.set_full(false);
        self.operate("adopt_database", disk, skew, |machine| async move {
            client::adopt::adopt(&machine, database).await
        })
        .await;
        let publisher = self.publisher().public_key();
        self.model.lock().unwrap().adopted(index, database, publisher);
        self.revive_client(cast, index, self.now(), true).await;
    }

    /// The publisher is started on an old copy of its storage. It finds out from its replicas, and
    /// they are none the worse; then the newest storage is put back.
    pub(super) async fn restore(&self, cast: &mut Cast, disorder: &mut Disorder) {
        self.stop_server(cast).await;
        let copy = self.copy.lock().unwrap().take();
        let Some(copy) = copy else {
            self.world.step("the publisher's storage is copied");
            *self.copy.lock().unwrap() = Some(self.server_disk.copy());
            self.revive_server(cast).await;
            return;
        };
        let truth = self.server_disk.copy();
        self.server_disk.replace(&copy);
        self.may_forget.store(true, Ordering::Relaxed);
        // It signs its old state anew, which whoever knows of no other takes for the newest.
        disorder.clocks_until = Duration::MAX;
        if let Start::Up(process) = self.start_server(None).await {
            let newest = process.parts.0.log().bounds().last;
            self.world.step(format!("the publisher is restored from a copy of commit {newest}"));
            let clients = || cast.clients.iter().flatten();
            clients().for_each(|client| client.life.live_on());
            let end = self.now() + REMINDED_WITHIN;
            while !process.life.is_dead() && self.now() < end {
                self.observe(cast, disorder).await;
                self.world.sleep(Duration::from_millis(100)).await;
            }
            let knows_more = clients().any(|client| {
                let known = client.parts.known.newest();
                !client.life.is_dead()
                    && known.is_some_and(|known| known.checkpoint.sequence > newest)
            });
            let state = |client: &Process<Client>| {
                let known = client.parts.known.newest().map(|known| known.checkpoint.sequence);
                (known, client.parts.status(client.clock.moment()))
            };
            assert!(
                process.life.is_dead() || !knows_more,
                "a restored publisher goes on, although a replica knows more than commit {newest}: {:?}",
                clients().map(state).collect::<Vec<_>>()
            );
            self.end(process).await;
        }
        self.may_forget.store(false, Ordering::Relaxed);
        self.world.step("the newest storage is put back");
        self.server_disk.replace(&truth);
        disorder.clocks_until = self.now() + Duration::from_secs(30);
        self.revive_server(cast).await;
    }

    /// Nobody may connect for a while, as after a reload: whoever was connected gets nothing more.
    pub(super) async fn revoke(&self, cast: &mut Cast, disorder: &Disorder) {
        self.world.step("no client is authorised");
        self.authorized.send_replace(Some(HashSet::new()));
        self.pass(cast, disorder, CUT_OFF_WITHIN).await;
        let heads = |cast: &Cast| -> Vec<u64> {
            let sequence = |client: &Process<Client>| {
                client.parts.head().map_or(0, |head| head.checkpoint.sequence)
            };
            cast.clients.iter().map(|client| client.as_ref().map_or(0, sequence)).collect()
        };
        let before = heads(cast);
        let time = Duration::from_millis(self.world.draw(100, 5000));
        self.pass(cast, disorder, time).await;
        let after = heads(cast);
        for (index, (before, after)) in before.iter().zip(&after).enumerate() {
            assert!(after <= before, "replica {index} may not connect and got commit {after}");
        }
        self.world.step("every client is authorised");
        self.authorized.send_replace(None);
    }
}
