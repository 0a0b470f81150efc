//! Small records on a disk that tears what was not synced.

use crate::machine::{Crash, Disk, Life, Machine, Skew, Steps, World};
use commonware_runtime::{Runner as _, Spawner as _, Supervisor as _, deterministic};
use commonware_utils::sequence::U64;
use std::sync::Arc;
use syncd::{database::types::Digest, storage_record::Records};

/// What takes several pages of a blob.
const VALUES: u64 = 400;

/// Writes many values for the first time, and dies at some await of it.
async fn write_and_die(context: &deterministic::Context, world: &Arc<World>, disk: &Disk) {
    let skew = Arc::new(Skew::new(0, 0));
    let life = Life::new(world.clone(), "writer".into(), disk.clone(), skew);
    life.crash_at(Crash::AtPoll(world.draw(1, 60)));
    let machine = Machine::new(context.child("writer"), life.clone());
    let writing = machine.spawn(|context| async move {
        let life = context.life.clone();
        let mut records = Records::<Machine, U64, Digest>::open(context, "large").await.unwrap();
        let values = (0..VALUES).map(|n| (U64::new(n), Digest([n as u8; 32])));
        records.update(|records| records.extend(values)).await.unwrap();
        life.die("when it has written");
    });
    life.died().await;
    writing.abort();
    let _ = writing.await;
    disk.cut_power(world);
}

#[test]
fn the_first_write_of_a_large_record_is_no_damage_when_a_crash_tears_it() {
    for seed in 0..300 {
        let config = deterministic::Config::new().with_seed(seed);
        deterministic::Runner::new(config).start(|context| async move {
            let world = World::new(context.child("world"), seed, Steps::default());
            let disk = Disk::default();
            write_and_die(&context, &world, &disk).await;
            let skew = Arc::new(Skew::new(0, 0));
            let life = Life::new(world, "reader".into(), disk, skew);
            let reader = Machine::new(context.child("reader"), life);
            let records = Records::<Machine, U64, Digest>::open(reader, "large").await;
            let found = records.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            // All of them or none.
            assert!([0, VALUES as usize].contains(&found.values().len()), "seed {seed}");
        });
    }
}
