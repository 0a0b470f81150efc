//! Descriptors, pipes, signals, namespaces, addresses.

mod addresses;
mod descriptors;
mod logs;
mod reload;
mod streams;
mod supervisor;

use crate::common::{Daemon, command};
use std::{
    path::Path,
    process::{Command, Stdio},
};

/// Options of a server that only tests write to.
const QUIET: [&str; 6] = ["-o", "0", "-i", "0", "--port", "0"];

/// A daemon's command on free ports, run by `wrapper`, whose last word is replaced by it.
fn wrapped(wrapper: &[&str], binary: &str, storage: &Path, options: &[&str]) -> Command {
    let program = command(binary);
    let mut words = wrapper.iter().copied();
    let mut command = match words.next() {
        Some(word) => Command::new(word),
        None => Command::new(program.get_program()),
    };
    command.args(words);
    if !wrapper.is_empty() {
        command.arg(program.get_program());
    }
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .arg("--storage-dir")
        .arg(storage)
        .args(["--api-port", "0", "--metrics-port", "0", "--log-format", "json"])
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Runs a daemon's command with its log beside `storage`, and waits until it listens.
fn start(mut command: Command, storage: &Path) -> Daemon {
    let log = std::fs::File::create(storage.with_extension("log")).unwrap();
    let mut daemon = Daemon::of(command.stderr(log).spawn().unwrap(), storage);
    daemon.wait_listening();
    daemon
}

/// Whether this machine lets tests make namespaces; where it does not, the test that asks is skipped by name.
fn may_unshare(test: &str, what: &str) -> bool {
    let may = Command::new("unshare").args([what, "true"]).output();
    let may = may.is_ok_and(|output| output.status.success());
    if !may {
        eprintln!("{test}: skipped, this machine does not allow 'unshare {what}'");
    }
    may
}
