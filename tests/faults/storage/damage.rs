//! One part of a storage directory is damaged or gone while the others are there.

use super::{copy, files, flip, names};
use crate::common::{BYTES, Daemon, get, send, syncctl, wait_for};
use std::{
    collections::BTreeMap,
    fs::File,
    hash::{DefaultHasher, Hasher as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

/// How long a daemon that should end, or listen, is waited for is `common::DEADLINE`; these run at once.
const AT_ONCE: usize = 3;

/// Runs `check` with every number below `count`, some at once.
fn for_each(count: usize, check: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    check(number);
                }
            });
        }
    });
}

/// Files that a refused start must leave alone: all but the lock and what tells others where the daemon is.
fn untouchable(storage: &Path) -> BTreeMap<PathBuf, u64> {
    let mut files = files(storage);
    files.retain(|path, _| !path.ends_with("lock") && !path.starts_with(storage.join("public")));
    let digest = |bytes: Vec<u8>| {
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        hasher.finish()
    };
    files.into_iter().map(|(path, bytes)| (path, digest(bytes))).collect()
}

/// Starts a daemon; its exit code, or `None` once it listens.
fn outcome(daemon: &mut Daemon) -> Option<i32> {
    wait_for("the daemon listens or ends", || {
        if daemon.storage.join("public/endpoints.json").exists() {
            daemon.wait_listening();
            return Some(None);
        }
        daemon.ended().map(|status| Some(status.code().unwrap_or(-1)))
    })
}

const SERVER: [&str; 6] = ["--port", "0", "-o", "0", "-i", "0"];

/// A stopped server's directory with a few commits, its database's identity.
fn server_storage(storage: &Path, options: &[&str]) -> String {
    let server = Daemon::server(storage, options);
    server.write_many("k", 5, 3);
    let database = server.status()["database"].as_str().unwrap().to_string();
    server.stop();
    database
}

/// Whatever folder or key is gone: the start is refused, says what is missing, and touches nothing.
#[test]
fn a_server_that_lost_a_part_touches_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("original");
    server_storage(&original, &[]);
    let mut parts: Vec<String> =
        names(&original.join("data")).iter().map(|name| format!("data/{name}")).collect();
    assert!(parts.len() >= 11, "{parts:?}");
    parts.extend(["publisher.key", "identity.key"].map(String::from));
    for_each(parts.len(), |number| {
        let (part, storage) = (&parts[number], directory.path().join(format!("server-{number}")));
        copy(&original, &storage);
        let path = storage.join(part);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        let before = untouchable(&storage);
        let mut server = Daemon::spawn("syncd-server", &storage, &SERVER);
        let code = outcome(&mut server);
        assert_eq!(code, Some(65), "without {part}: {}", server.log_tail());
        assert!(server.log_tail().contains(part.as_str()), "{part}: {}", server.log_tail());
        assert_eq!(untouchable(&storage), before, "without {part}");
    });
}

/// One flipped bit of any file: refused, or all is there that was acknowledged. Never a new identity.
#[test]
fn a_flipped_bit_never_makes_a_server_new() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("original");
    let database = server_storage(&original, &[]);
    let files: Vec<_> = files(&original.join("data")).into_iter().collect();
    let targets: Vec<(PathBuf, usize)> = files
        .iter()
        .filter(|(_, bytes)| bytes.len() > 4096)
        .flat_map(|(path, bytes)| {
            let path = path.strip_prefix(&original).unwrap().to_path_buf();
            [(path.clone(), 2), (path, 4096 + (bytes.len() - 4096) / 3)]
        })
        .collect();
    for_each(targets.len(), |number| {
        let ((part, position), storage) =
            (&targets[number], directory.path().join(format!("server-{number}")));
        copy(&original, &storage);
        flip(&storage.join(part), *position);
        let what = format!("bit {position} of {} flipped", part.display());
        let mut server = Daemon::spawn("syncd-server", &storage, &SERVER);
        match outcome(&mut server) {
            None => {
                assert_eq!(server.status()["database"], database.as_str(), "{what}");
                for key in ["k/0", "k/14"] {
                    let answer = get(&format!("{}/v1/keys/{key}", server.api));
                    assert_eq!(answer.status, 200, "{what}: {key} is lost");
                }
            }
            code => assert_eq!(code, Some(65), "{what}: {}", server.log_tail()),
        }
    });
}

/// The newest record of the log, after a crash: damage to it is told from a torn write, and given up only by order.
#[test]
fn a_damaged_end_of_the_log_is_no_torn_write() {
    let directory = tempfile::tempdir().unwrap();
    let storage = directory.path().join("server");
    let mut server = Daemon::server(&storage, &[]);
    server.write_many("k", 5, 1);
    let value = b"the value of the newest record";
    assert_eq!(server.put("last", value).status, 200);
    let sequence = server.status()["sequence"].as_u64().unwrap();
    server.kill();
    let newest = files(&storage.join("data/commits-0_data")).into_iter().next_back().unwrap();
    let position = newest.1.windows(value.len()).position(|window| window == value).unwrap();
    flip(&newest.0, position);
    for _ in 0..2 {
        let mut server = Daemon::spawn("syncd-server", &storage, &SERVER);
        assert_eq!(outcome(&mut server), Some(65), "{}", server.log_tail());
    }
    let at = storage.display().to_string();
    assert_eq!(syncctl(&["new-epoch", "--storage-dir", &at]).status.code(), Some(65));
    let output = syncctl(&["new-epoch", "--storage-dir", &at, "--discard-unreadable"]);
    assert!(output.status.success(), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let is_lost = error
        .contains(&format!("LOST: 1 acknowledged commits, sequences {sequence} to {sequence}"));
    // Or the upkeep had made it durable in the database before the crash.
    assert!(is_lost || error.contains("no commit is lost"), "{error}");
    let server = Daemon::server(&storage, &[]);
    assert_eq!(server.status()["sequence"].as_u64().unwrap(), sequence - u64::from(is_lost));
    assert_eq!(get(&format!("{}/v1/keys/k/4", server.api)).status, 200);
    let found = get(&format!("{}/v1/keys/last", server.api)).status;
    assert_eq!(found, if is_lost { 404 } else { 200 });
    assert_eq!(server.put("last", b"again").status, 200);
}

/// A replica that verified a commit and cannot read it any more does not take whatever comes in its place.
#[test]
fn a_replica_whose_log_lost_its_end_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    server.write_many("k", 5, 1);
    let storage = directory.path().join("client");
    let mut client = server.client(&storage, &[]);
    client.wait_equal(&server);
    let value = b"the value of the newest record";
    assert_eq!(server.put("last", value).status, 200);
    client.wait_equal(&server);
    client.kill();
    let newest = files(&storage.join("data/commits-1_data")).into_iter().next_back().unwrap();
    let position = newest.1.windows(value.len()).position(|window| window == value).unwrap();
    flip(&newest.0, position);
    let mut client = server.spawn_client(&storage, &[]);
    assert_eq!(outcome(&mut client), Some(65), "{}", client.log_tail());
    assert!(client.log_tail().contains("the end of the log is damaged"), "{}", client.log_tail());
}

/// What says how much was acknowledged is itself kept twice, and missed: without it, a damaged end could pass for a torn one.
#[test]
fn what_was_acknowledged_is_known_or_the_start_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("original");
    let mut server = Daemon::server(&original, &[]);
    server.write_many("k", 5, 1);
    let sequence = server.status()["sequence"].as_u64().unwrap();
    server.kill();
    let mark = |storage: &Path| {
        files(&storage.join("data/commits-0_mark")).into_iter().next_back().unwrap()
    };
    let content = mark(&original).1;
    let copies: Vec<usize> = (0..content.len() - 7)
        .filter(|at| content[*at..*at + 8] == sequence.to_be_bytes())
        .collect();
    assert_eq!(copies.len(), 2, "{copies:?}");
    type Act<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Option<i32>, Act<'_>); 5] = [
        ("one copy", None, &|storage| flip(&mark(storage).0, copies[0])),
        ("other copy", None, &|storage| flip(&mark(storage).0, copies[1])),
        ("both copies", Some(65), &|storage| {
            copies.iter().for_each(|at| flip(&mark(storage).0, *at))
        }),
        ("short", Some(65), &|storage| {
            let file = File::options().write(true).open(mark(storage).0).unwrap();
            file.set_len(copies[0] as u64 + 4).unwrap();
        }),
        ("gone", Some(65), &|storage| std::fs::remove_file(mark(storage).0).unwrap()),
    ];
    for (name, code, act) in cases {
        let storage = directory.path().join(name.replace(' ', "-"));
        copy(&original, &storage);
        act(&storage);
        let Some(code) = code else {
            let server = Daemon::server(&storage, &[]);
            assert_eq!(server.status()["sequence"].as_u64().unwrap(), sequence, "{name}");
            continue;
        };
        for _ in 0..2 {
            let mut server = Daemon::spawn("syncd-server", &storage, &SERVER);
            assert_eq!(outcome(&mut server), Some(code), "{name}: {}", server.log_tail());
        }
        let at = storage.display().to_string();
        assert_eq!(
            syncctl(&["new-epoch", "--storage-dir", &at]).status.code(),
            Some(code),
            "{name}"
        );
        assert_eq!(
            syncctl(&["rotate-key", "--storage-dir", &at]).status.code(),
            Some(code),
            "{name}"
        );
        let output = syncctl(&["new-epoch", "--storage-dir", &at, "--discard-unreadable"]);
        assert!(output.status.success(), "{name}: {output:?}");
        let server = Daemon::server(&storage, &[]);
        assert_eq!(get(&format!("{}/v1/keys/k/4", server.api)).status, 200, "{name}");
    }
}

/// Whatever part of the log is damaged, and however: what was ordered to be given up does not stand in the way of a new one.
#[test]
fn a_new_epoch_begins_whatever_the_log_looks_like() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("original");
    server_storage(&original, &[]);
    let mut number = 0;
    for part in names(&original.join("data")).iter().filter(|name| name.starts_with("commits-")) {
        for path in files(&original.join("data").join(part)).into_keys() {
            let storage = directory.path().join(format!("server-{number}"));
            number += 1;
            copy(&original, &storage);
            let path = storage.join(path.strip_prefix(&original).unwrap());
            flip(&path, 0);
            let at = storage.display().to_string();
            let output = syncctl(&["new-epoch", "--storage-dir", &at, "--discard-unreadable"]);
            assert!(output.status.success(), "{}: {output:?}", path.display());
            let server = Daemon::server(&storage, &[]);
            assert_eq!(get(&format!("{}/v1/keys/k/4", server.api)).status, 200, "{part}");
        }
    }
    assert!(number > 4, "{number}");
}

/// Both copies of a record: refused by name, untouched, on both daemons.
#[test]
fn two_damaged_copies_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("server");
    let server = Daemon::server(&original, &[]);
    server.write_many("k", 3, 3);
    let replica = directory.path().join("client");
    let client = server.client(&replica, &[]);
    client.wait_equal(&server);
    client.stop();
    let spoil = |from: &Path, record: &str| {
        let storage = directory.path().join(format!("spoiled-{record}"));
        copy(from, &storage);
        for path in files(&storage.join("data").join(record)).into_keys() {
            flip(&path, 4096 + 8);
        }
        let before = untouchable(&storage);
        (storage, before)
    };
    let check = |mut daemon: Daemon, record: &str, before| {
        assert_eq!(outcome(&mut daemon), Some(65), "{record}: {}", daemon.log_tail());
        assert!(daemon.log_tail().contains(record), "{record}: {}", daemon.log_tail());
        assert_eq!(untouchable(&daemon.storage), before, "{record}");
    };
    for record in ["generations", "learned-publisher-keys", "newest-checkpoint", "pinned"] {
        let (storage, before) = spoil(&replica, record);
        check(server.spawn_client(&storage, &[]), record, before);
    }
    server.stop();
    for record in ["server", "publisher-keys"] {
        let (storage, before) = spoil(&original, record);
        check(Daemon::spawn("syncd-server", &storage, &SERVER), record, before);
    }
}

/// A replica that lost a record of what it was shown says so; one that lost data gets them again. It never forgets.
#[test]
fn a_replica_that_lost_a_part_says_so_or_gets_it_again() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    server.write_many("k", 5, 3);
    let original = directory.path().join("original");
    let client = server.client(&original, &[]);
    client.wait_equal(&server);
    client.stop();
    let mut parts: Vec<String> =
        names(&original.join("data")).iter().map(|name| format!("data/{name}")).collect();
    parts.push("identity.key".into());
    let memory = ["generations", "learned-publisher-keys", "newest-checkpoint", "pinned"];
    for part in memory {
        assert!(parts.contains(&format!("data/{part}")), "{parts:?}");
    }
    for_each(parts.len(), |number| {
        let (part, storage) = (&parts[number], directory.path().join(format!("client-{number}")));
        copy(&original, &storage);
        let path = storage.join(part);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        let before = untouchable(&storage);
        let mut client = server.spawn_client(&storage, &[]);
        let code = outcome(&mut client);
        let is_memory = memory.iter().any(|name| *part == format!("data/{name}"));
        if code.is_none() && !is_memory {
            client.wait_equal(&server);
            return;
        }
        assert_eq!(code, Some(65), "without {part}: {}", client.log_tail());
        if is_memory || part == "identity.key" {
            assert!(client.log_tail().contains(part.as_str()), "{part}: {}", client.log_tail());
            assert_eq!(untouchable(&storage), before, "without {part}");
        }
    });
}

/// A first start that is killed at any moment is finished by the next one.
#[test]
fn an_interrupted_first_start_is_not_a_loss() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..12 {
        let storage = directory.path().join(format!("server-{round}"));
        let mut server = Daemon::spawn("syncd-server", &storage, &SERVER);
        wait_for("the first partitions are made", || {
            let made = std::fs::read_dir(storage.join("data")).map_or(0, Iterator::count);
            (made > round).then_some(())
        });
        server.kill();
        let server = Daemon::server(&storage, &[]);
        assert_eq!(server.put("a", b"1").status, 200);
    }
}

/// The log cannot be read: a new epoch changes nothing, unless it is told to, and says what is lost.
#[test]
fn a_new_epoch_does_not_drop_what_it_cannot_read() {
    let directory = tempfile::tempdir().unwrap();
    let storage = directory.path().join("server");
    let mut server = Daemon::server(&storage, &[]);
    // Killed, so that the database lacks the end of the log.
    server.write_many("k", 400, 1);
    let sequence = server.status()["sequence"].as_u64().unwrap();
    server.kill();
    let at = storage.display().to_string();
    let before = untouchable(&storage);
    // Too few descriptors for the segments of the log.
    let limited = |arguments: &str| {
        let syncctl = crate::common::command("syncctl").get_program().to_owned();
        std::process::Command::new("sh")
            .args([
                "-c",
                &format!("ulimit -n 24; exec \"$0\" new-epoch --storage-dir \"$1\" {arguments}"),
            ])
            .args([syncctl, storage.clone().into_os_string()])
            .output()
            .unwrap()
    };
    let output = limited("");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(74), "{output:?}");
    assert!(
        error.contains("--discard-unreadable") && error.contains("Nothing was changed"),
        "{error}"
    );
    let values = |files: &BTreeMap<PathBuf, u64>| {
        let mut files = files.clone();
        files.retain(|path, _| path.to_string_lossy().contains("commits-0_data"));
        files
    };
    assert_eq!(values(&untouchable(&storage)), values(&before), "the log is as it was");
    // With enough of them, nothing is lost.
    let whole = directory.path().join("whole");
    copy(&storage, &whole);
    let output = syncctl(&["new-epoch", "--storage-dir", &whole.display().to_string()]);
    assert!(output.status.success(), "{output:?}");
    let server = Daemon::server(&whole, &[]);
    assert_eq!(get(&format!("{}/v1/keys/k/399", server.api)).status, 200);
    assert_eq!(server.status()["sequence"], sequence);
    drop(server);
    // The log lost its beginning: what is given up is said.
    std::fs::remove_dir_all(storage.join("data/commits-0_data")).unwrap();
    let output = syncctl(&["new-epoch", "--storage-dir", &at]);
    assert_eq!(output.status.code(), Some(65), "{output:?}");
    let output = syncctl(&["new-epoch", "--storage-dir", &at, "--discard-unreadable"]);
    assert!(output.status.success(), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("LOST: ") && error.contains(&format!(" to {sequence}\n")), "{error}");
    Daemon::server(&storage, &[]).stop();
}

/// A write that is tried again in the new epoch is answered as it was in the old one.
#[test]
fn a_new_epoch_keeps_idempotency_keys() {
    let directory = tempfile::tempdir().unwrap();
    let storage = directory.path().join("server");
    let keyless = ["--db", "keyless"];
    let mut server = Daemon::server(&storage, &keyless);
    let append = |server: &Daemon, key: &str| {
        let headers = [BYTES, ("idempotency-key", key)];
        let answer = send("POST", &format!("{}/v1/append", server.api), &headers, b"value");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    let first = append(&server, "once");
    server.kill();
    for _ in 0..2 {
        let output = syncctl(&["new-epoch", "--storage-dir", &storage.display().to_string()]);
        assert!(output.status.success(), "{output:?}");
        let server = Daemon::server(&storage, &keyless);
        let size = server.size();
        assert_eq!(append(&server, "once"), first, "answered as the first time");
        assert_eq!(server.size(), size, "and not written again");
        assert_ne!(append(&server, "other"), first);
        server.stop();
        let server = Daemon::server(&storage, &keyless);
        assert_eq!(append(&server, "once"), first, "also after a restart");
        server.stop();
    }
}
