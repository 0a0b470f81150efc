//! Disk is given back: what no pointer names is removed.

use super::names;
use crate::common::{Daemon, command, syncctl, wait_for};
use std::{path::Path, process::Stdio, time::Duration};

/// Generations that have partitions in a replica's directory.
fn generations(storage: &Path) -> Vec<u64> {
    let number = |name: &String| name.split('-').nth(1)?.split('_').next()?.parse().ok();
    let mut found: Vec<u64> = names(&storage.join("data")).iter().filter_map(number).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Partitions that every replica has, whatever it replicates.
const RECORDS: [&str; 4] = ["generations", "learned-publisher-keys", "newest-checkpoint", "pinned"];

/// What a replica with one generation has.
fn expected(generation: u64) -> Vec<String> {
    let mut names: Vec<String> = RECORDS.map(String::from).to_vec();
    names.extend(syncd::database::required_partitions(
        syncd::database::types::Family::Any,
        generation,
        syncd::database::types::Mode::Full,
    ));
    names.sort();
    names
}

/// A replica whose database cannot be opened at its log's last record syncs again; the old generation goes with it.
#[test]
fn a_generation_that_could_not_be_opened_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    server.write_many("k", 5, 3);
    let storage = directory.path().join("client");
    let client = server.client(&storage, &[]);
    client.wait_equal(&server);
    client.stop();
    assert_eq!(names(&storage.join("data")), expected(1));
    // The log stays, the database is gone: what was verified is known, its data are not.
    for name in names(&storage.join("data")) {
        if name.starts_with("any-1-") {
            std::fs::remove_dir_all(storage.join("data").join(name)).unwrap();
        }
    }
    let client = server.client(&storage, &[]);
    wait_for("the replica has synced again", || {
        let equal = client.root() == server.root();
        (equal && generations(&storage) == [2]).then_some(())
    });
    assert_eq!(names(&storage.join("data")), expected(2));
}

/// `adopt-database`, killed at any moment, leaves nothing after it was run again, or after the next start.
#[test]
fn an_interrupted_adoption_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Daemon::server(&directory.path().join("server"), &[]);
    server.write_many("k", 5, 3);
    let storage = directory.path().join("client");
    let client = server.client(&storage, &[]);
    client.wait_equal(&server);
    client.stop();
    let at = storage.display().to_string();
    for round in 0..20_u32 {
        server.stop();
        let output =
            syncctl(&["new-epoch", "-d", &directory.path().join("server").display().to_string()]);
        assert!(output.status.success(), "{output:?}");
        let identity = String::from_utf8(output.stdout).unwrap().trim().to_string();
        let mut adopting = command("syncctl")
            .args(["adopt-database", &identity, "-d", &at])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // From before anything happened to after everything did.
        std::thread::sleep(Duration::from_millis(u64::from(round) * 4));
        let _ = adopting.kill();
        adopting.wait().unwrap();
        let output = syncctl(&["adopt-database", &identity, "-d", &at]);
        assert!(output.status.success(), "{output:?}");
        let left = names(&storage.join("data"));
        assert_eq!(left, RECORDS, "round {round}");
        server = Daemon::server(&directory.path().join("server"), &[]);
        let client = server.client(&storage, &[]);
        client.wait_equal(&server);
        client.stop();
        assert_eq!(
            generations(&storage).len(),
            1,
            "round {round}: {:?}",
            names(&storage.join("data"))
        );
    }
}
