//! The storage directory is moved or removed under a running daemon.

use crate::common::{BYTES, Daemon, get, try_send, wait_for};
use std::path::Path;

/// What happens to a directory.
type Act = fn(&Path, &Path);

const MOVED: Act = |storage, away| std::fs::rename(storage, away).unwrap();
const REMOVED: Act = |storage, _| std::fs::remove_dir_all(storage).unwrap();
/// Another one, even a copy, is not the one that is in use.
const REPLACED: Act = |storage, away| {
    std::fs::rename(storage, away).unwrap();
    super::copy(away, storage);
};

fn put(server: &Daemon, key: &str) -> Option<u16> {
    let url = format!("{}/v1/keys/{key}", server.api);
    try_send("PUT", &url, &[BYTES], b"value").map(|answer| answer.status)
}

/// Nothing is acknowledged into a directory that is gone; what was acknowledged before is in the moved one.
#[test]
fn a_server_whose_directory_is_gone_acknowledges_nothing() {
    let directory = tempfile::tempdir().unwrap();
    for (name, act) in [("moved", MOVED), ("removed", REMOVED), ("replaced", REPLACED)] {
        let storage = directory.path().join(name);
        let away = directory.path().join(format!("{name}-away"));
        let mut server = Daemon::server(&storage, &[]);
        for number in 0..20 {
            assert_eq!(put(&server, &format!("before/{number}")), Some(200));
        }
        act(&storage, &away);
        let left = storage.exists();
        for number in 0..20 {
            let status = put(&server, &format!("after/{number}"));
            assert_ne!(status, Some(200), "{name}: write {number} was acknowledged");
        }
        assert_eq!(server.wait().code(), Some(74), "{name}: {}", server.log_tail());
        let log = server.log_tail();
        assert!(log.contains("moved or removed") && log.contains(name), "{name}: {log}");
        assert_eq!(storage.exists(), left, "{name}: the directory was made again");
        if away.exists() {
            let server = Daemon::server(&away, &[]);
            let answer = get(&format!("{}/v1/keys/before/19", server.api));
            assert_eq!(answer.status, 200, "{name}: an acknowledged write is lost");
        }
    }
}

/// Every part of the storage that was there when it was opened is watched, not only its root.
#[test]
fn a_server_that_loses_a_part_acknowledges_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut parts = 0;
    for number in 0.. {
        let storage = directory.path().join(number.to_string());
        let mut server = Daemon::server(&storage, &[]);
        assert_eq!(put(&server, "before"), Some(200));
        let mut names: Vec<_> =
            std::fs::read_dir(storage.join("data")).unwrap().map(|entry| entry.unwrap()).collect();
        names.retain(|entry| entry.file_type().unwrap().is_dir());
        names.sort_by_key(|entry| entry.file_name());
        let Some(part) = names.get(number) else { break };
        std::fs::remove_dir_all(part.path()).unwrap();
        assert_ne!(put(&server, "after"), Some(200), "acknowledged without {part:?}");
        assert_eq!(server.wait().code(), Some(74), "{part:?}: {}", server.log_tail());
        let log = server.log_tail();
        assert!(log.contains(&*part.file_name().to_string_lossy()), "{part:?}: {log}");
        parts += 1;
    }
    assert!(parts > 8, "{parts}");
}

/// A server that nobody writes to finds out as well.
#[test]
fn an_idle_server_whose_directory_is_gone_ends() {
    let directory = tempfile::tempdir().unwrap();
    let storage = directory.path().join("server");
    let mut server = Daemon::server(&storage, &[]);
    std::fs::rename(&storage, directory.path().join("away")).unwrap();
    assert_eq!(server.wait().code(), Some(74), "{}", server.log_tail());
    assert!(!storage.exists());
}

/// A replica does not follow into a directory that is gone, whether commits come or not.
#[test]
fn a_replica_whose_directory_is_gone_ends() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    server.write_many("k", 3, 3);
    for (name, act, writes) in
        [("moved", MOVED, true), ("removed", REMOVED, true), ("idle", MOVED, false)]
    {
        let storage = directory.path().join(name);
        let mut client = server.client(&storage, &[]);
        client.wait_equal(&server);
        act(&storage, &directory.path().join(format!("{name}-away")));
        let status = wait_for("the replica ends", || {
            if writes {
                assert_eq!(server.put("k", b"more").status, 200);
            }
            client.ended()
        });
        assert_eq!(status.code(), Some(74), "{name}: {}", client.log_tail());
        let log = client.log_tail();
        assert!(log.contains("moved or removed"), "{name}: {log}");
        assert!(!storage.exists(), "{name}: the directory was made again");
    }
}
