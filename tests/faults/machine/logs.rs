//! Whoever reads the log may stall: the daemon does not.

use super::{QUIET, wrapped};
use crate::common::{Daemon, get, wait_for};
use rustix::process::Signal;
use std::{
    io::{BufRead as _, BufReader, PipeReader},
    path::Path,
    time::{Duration, Instant},
};

/// A server whose log goes into a pipe that nobody reads.
fn server_unread(storage: &Path, level: &str) -> (Daemon, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let options = [&QUIET[..], &["--log-level", level]].concat();
    let mut command = wrapped(&[], "syncd-server", storage, &options);
    let mut server = Daemon::of(command.stderr(writer).spawn().unwrap(), storage);
    drop(command);
    server.wait_listening();
    (server, reader)
}

/// Writes and health are answered while the log is not read, and the end comes in time.
#[test]
fn a_stalled_reader_of_the_log_stalls_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (mut server, _reader) = server_unread(&directory.path().join("server"), "debug");
    for n in 0..400 {
        assert_eq!(server.put(&format!("key-{n}"), b"x").status, 200);
    }
    assert_eq!(get(&format!("{}/readyz", server.metrics)).status, 200);
    let asked = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
    // The grace is ten seconds; the last lines may take one.
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
}

/// Lines beyond the queue are counted, and the log says how many are missing once it is read again.
#[test]
fn lines_that_were_dropped_are_counted_and_reported() {
    let directory = tempfile::tempdir().unwrap();
    // A reload says where it read the level: with a long name, in a long line.
    let names = directory.path().join("n".repeat(250)).join(vec!["l".repeat(250); 10].join("/"));
    std::fs::create_dir_all(&names).unwrap();
    let level = names.join("level");
    std::fs::write(&level, "info").unwrap();
    let storage = directory.path().join("server");
    let (server, reader) = server_unread(&storage, &format!("@{}", level.display()));
    const DROPPED: &str = "syncd_log_lines_dropped_total";
    assert_eq!(server.metric(DROPPED), 0.0, "the series begins at zero");
    wait_for("lines are dropped", || {
        for _ in 0..200 {
            syncd::control::ask_reload(&storage, Duration::from_secs(60)).unwrap();
        }
        (server.metric(DROPPED) > 0.0).then_some(())
    });
    let reported = BufReader::new(reader).lines().find_map(|line| {
        let line = line.unwrap();
        let line: serde_json::Value = serde_json::from_str(&line).expect("lines are whole");
        let is_report = line["message"].as_str()?.starts_with("log lines were dropped");
        is_report.then(|| line["lines"].as_u64().unwrap())
    });
    let dropped = server.metric(DROPPED);
    let reported = reported.expect("the number is reported") as f64;
    assert!(reported > 0.0 && reported <= dropped, "{reported} of {dropped}");
}

/// A second signal ends the process at once, whoever does not read.
#[test]
fn a_second_signal_does_not_wait_for_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let (mut server, _reader) = server_unread(&directory.path().join("server"), "debug");
    for n in 0..400 {
        assert_eq!(server.put(&format!("key-{n}"), b"x").status, 200);
    }
    let asked = Instant::now();
    server.signal(Signal::TERM);
    server.signal(Signal::TERM);
    let status = server.wait();
    // Both may come as one: then it drains.
    assert!([Some(0), Some(143)].contains(&status.code()), "{status}");
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
}
