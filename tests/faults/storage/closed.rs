//! What other users of the machine can look into.

use crate::common::Daemon;
use rustix::fs::Mode;
use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// Every path below `directory`, with its mode; what is inside a closed directory is closed.
fn open_to_others(directory: &Path) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            found.push((entry.path(), mode));
        }
    }
    found
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn check(storage: &Path) {
    assert_eq!(mode(storage), 0o711);
    let public = storage.join("public");
    assert_eq!(open_to_others(storage), [(public.clone(), 0o755)]);
    for entry in std::fs::read_dir(&public).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o644, "{}", path.display());
    }
}

/// Whatever the umask, on both daemons: data, keys and lock are closed, public files are open.
#[test]
fn only_what_is_public_is_open_to_other_users() {
    let directory = tempfile::tempdir().unwrap();
    // Set for this process, which the daemons inherit it from; restored at the end.
    let before = rustix::process::umask(Mode::empty());
    for umask in [0o000, 0o022, 0o077] {
        rustix::process::umask(Mode::from_raw_mode(umask));
        let (server, client) = (
            directory.path().join(format!("server-{umask:o}")),
            directory.path().join(format!("client-{umask:o}")),
        );
        let server = Daemon::server(&server, &[]);
        let client = server.client(&client, &[]);
        assert_eq!(server.put("a", b"1").status, 200);
        client.wait_equal(&server);
        for daemon in [&server, &client] {
            check(&daemon.storage);
            for entry in std::fs::read_dir(daemon.storage.join("data")).unwrap() {
                let path = entry.unwrap().path();
                assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
            }
        }
    }
    rustix::process::umask(before);
}

/// A directory that an earlier version, or somebody, left open is closed at the next start, which says so.
#[test]
fn an_open_directory_is_closed_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let storage = directory.path().join("server");
    Daemon::server(&storage, &[]).stop();
    for (name, mode) in [("", 0o755), ("data", 0o755), ("lock", 0o644), ("publisher.key", 0o644)] {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(storage.join(name), permissions).unwrap();
    }
    let server = Daemon::server(&storage, &[]);
    check(&storage);
    let said = server.log_text().matches("closed to other users").count();
    assert_eq!(said, 4, "{}", server.log_text());
}
