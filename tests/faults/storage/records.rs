//! The two copies of a small record.

use super::{files, flip};
use commonware_runtime::{Supervisor as _, tokio::Context};
use commonware_utils::sequence::U64;
use std::path::Path;
use syncd::storage_record::{Error, Records};

/// Bytes of a file before the library's: the runtime's header.
const HEADER: usize = 4096;

async fn open(context: &Context) -> Result<Records<Context, U64, u64>, Error> {
    Records::open(context.child("test"), "record").await
}

fn on_runtime<F: Future<Output = ()>>(directory: &Path, work: impl FnOnce(Context) -> F) {
    syncd::daemon::run_on_runtime(directory, |context| async move {
        work(context).await;
        Ok(())
    })
    .unwrap();
}

type Damage = Box<dyn Fn(&Path)>;

/// What can happen to one copy: a bit of each of its parts flipped, cut short, emptied, removed.
fn damages(length: usize) -> Vec<Damage> {
    let mut damages: Vec<Damage> = Vec::new();
    // Magic, versions and checksum of the header, its padding; then version, keys, values and checksum of the record.
    let positions = (0..13).chain([100, HEADER - 1]).chain(HEADER..length);
    for position in positions {
        damages.push(Box::new(move |path| flip(path, position)));
    }
    for kept in [0, 5, 8, 12, HEADER - 1, HEADER, HEADER + 1, HEADER + 11, length - 1] {
        damages.push(Box::new(move |path| {
            std::fs::File::options().write(true).open(path).unwrap().set_len(kept as u64).unwrap();
        }));
    }
    damages.push(Box::new(|path| std::fs::remove_file(path).unwrap()));
    damages
}

#[test]
fn a_damaged_copy_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data/record");
    on_runtime(directory.path(), |context| async move {
        let mut records = open(&context).await.unwrap();
        assert!(!records.is_written());
        assert!(!data.exists(), "opening makes nothing");
        let update = records.update(|records| {
            records.insert(U64::new(1), 11);
            records.insert(U64::new(2), 22);
        });
        update.await.unwrap();
        // Each kind of change ends in both copies: a value replaced, removed, added.
        let update = records.update(|records| {
            records.insert(U64::new(1), 12);
        });
        update.await.unwrap();
        let update = records.update(|records| {
            records.remove(&U64::new(2));
            records.insert(U64::new(3), 33);
        });
        update.await.unwrap();
        let copies: Vec<_> = files(&data).into_iter().collect();
        assert_eq!(copies.len(), 2);
        let values = |bytes: &[u8]| bytes[HEADER + 8..bytes.len() - 4].to_vec();
        assert_eq!(values(&copies[0].1), values(&copies[1].1));
        for (path, intact) in &copies {
            for (number, damage) in damages(intact.len()).iter().enumerate() {
                damage(path);
                let found = open(&context).await;
                let found = found.unwrap_or_else(|error| panic!("damage {number}: {error}"));
                assert!(found.was_repaired(), "damage {number} of {}", path.display());
                let values: Vec<_> =
                    found.values().iter().map(|(k, v)| (u64::from(k), *v)).collect();
                assert_eq!(values, [(1, 12), (3, 33)], "damage {number}");
                let again = open(&context).await.unwrap();
                assert!(!again.was_repaired(), "damage {number} was not repaired");
            }
        }
    });
}

#[test]
fn two_damaged_copies_are_damage_and_stay() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data/record");
    on_runtime(directory.path(), |context| async move {
        open(&context).await.unwrap().update(|_| ()).await.unwrap();
        let copies: Vec<_> = files(&data).into_keys().collect();
        for position in [0, HEADER, HEADER + 10] {
            for path in &copies {
                flip(path, position);
            }
            let before = files(&data);
            let error = open(&context).await.err().unwrap();
            assert!(error.is_damage(), "{error}");
            assert!(error.to_string().contains("'record'"), "{error}");
            assert_eq!(files(&data), before);
            for path in &copies {
                flip(path, position);
            }
        }
        // Written, and empty: that is not the same as never written.
        let records = open(&context).await.unwrap();
        assert!(records.is_written() && records.values().is_empty());
    });
}
