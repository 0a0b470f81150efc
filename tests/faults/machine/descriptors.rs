//! File descriptors: whoever may connect takes none that the storage needs.

use super::{QUIET, start, wrapped};
use crate::common::{Daemon, wait_for};
use std::{net::TcpStream, path::Path, process::Command};

/// A server under a limit of open files, soft and hard.
fn server_with(limit: &str, storage: &Path) -> Command {
    let line = format!("ulimit {limit}; exec \"$0\" \"$@\"");
    wrapped(&["sh", "-c", &line], "syncd-server", storage, &QUIET)
}

fn flood(address: &str) -> Vec<TcpStream> {
    let address = address.trim_start_matches("http://");
    (0..250).filter_map(|_| TcpStream::connect(address).ok()).collect()
}

fn check_writes(server: &Daemon, prefix: &str) {
    for n in 0..30 {
        assert_eq!(server.put(&format!("{prefix}-{n}"), b"x").status, 200, "{}", server.log_tail());
    }
}

/// 250 idle connections to each port of a server that may have 256 files open: writes go on.
#[test]
fn idle_connections_do_not_take_the_descriptors_of_the_storage() {
    syncd::descriptors::raise_limit();
    let directory = tempfile::tempdir().unwrap();
    let storage = directory.path().join("server");
    let server = start(server_with("-n 256", &storage), &storage);
    assert!(server.log_text().contains("few file descriptors"), "{}", server.log_text());
    check_writes(&server, "before");
    let mut held = Vec::new();
    for (port, address) in
        [("metrics", &server.metrics), ("sync", &server.sync), ("api", &server.api)]
    {
        held.extend(flood(address));
        check_writes(&server, port);
        let max = server.metric(&format!("syncd_connections_max{{port=\"{port}\"}}"));
        assert!((8.0..100.0).contains(&max), "{port}: {max}");
        let (open, limit) = (server.metric("process_open_fds"), server.metric("process_max_fds"));
        assert!(limit == 256.0 && open < limit - 16.0, "{port}: {open} of {limit}");
    }
    drop(held);
    // What waited in the kernel is served.
    wait_for("the ports are free again", || {
        (server.put("after", b"x").status == 200).then_some(())
    });
    server.stop();
}

#[test]
fn the_soft_limit_is_raised() {
    let directory = tempfile::tempdir().unwrap();
    let storage = directory.path().join("server");
    let server = start(server_with("-Sn 256", &storage), &storage);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers[0], numbers[1], "{line}");
}

#[test]
fn a_limit_that_is_too_low_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let storage = directory.path().join("server");
    let output = server_with("-n 100", &storage).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{error}");
    assert!(
        error.contains("limit of open files is 100") && error.contains("LimitNOFILE"),
        "{error}"
    );
}
