//! What systemd is told, by real processes that find a socket in `NOTIFY_SOCKET`.

use super::{QUIET, start, wrapped};
use crate::common::{Daemon, wait_for};
use rustix::process::Signal;
use std::{os::unix::net::UnixDatagram, path::Path, time::Duration};

/// A socket that a supervisor reads, and everything that came over it.
struct Supervisor {
    socket: UnixDatagram,
    told: Vec<String>,
}

impl Supervisor {
    fn new(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        Self { socket, told: Vec::new() }
    }

    /// Waits for a message with `line`, which begins a line; returns the message.
    fn wait(&mut self, line: &str) -> String {
        wait_for(line, || {
            let mut message = [0; 4096];
            let length = self.socket.recv(&mut message).ok()?;
            let message = String::from_utf8(message[..length].to_vec()).unwrap();
            self.told.push(message.clone());
            message.lines().any(|found| found.starts_with(line)).then_some(message)
        })
    }
}

fn check(mut daemon: Daemon, supervisor: &mut Supervisor, status: &str) {
    supervisor.wait("READY=1");
    assert_eq!(supervisor.told.len(), 1, "nothing is said before: {:?}", supervisor.told);
    let message = supervisor.wait("STATUS=");
    assert!(message.contains(status), "{message}");
    for _ in 0..3 {
        supervisor.wait("WATCHDOG=1");
    }
    daemon.signal(Signal::HUP);
    assert!(supervisor.wait("RELOADING=1").contains("MONOTONIC_USEC="));
    supervisor.wait("READY=1");
    daemon.signal(Signal::TERM);
    supervisor.wait("STOPPING=1");
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log_tail());
}

#[test]
fn systemd_is_told_what_the_daemons_do() {
    let directory = tempfile::tempdir().unwrap();
    let socket = |name: &str| directory.path().join(format!("{name}.notify"));
    let with_socket = |mut command: std::process::Command, name: &str| {
        command.env("NOTIFY_SOCKET", socket(name)).env("WATCHDOG_USEC", "200000");
        command.env_remove("WATCHDOG_PID");
        command
    };
    let mut of_server = Supervisor::new(&socket("server"));
    let storage = directory.path().join("server");
    let command = with_socket(wrapped(&[], "syncd-server", &storage, &QUIET), "server");
    let server = start(command, &storage);
    let mut of_client = Supervisor::new(&socket("client"));
    let storage = directory.path().join("client");
    let trust = server.trust();
    let mut options: Vec<&str> = trust.iter().map(String::as_str).collect();
    options.extend(["--server", &server.sync]);
    let command = with_socket(wrapped(&[], "syncd-client", &storage, &options), "client");
    let client = start(command, &storage);
    client.wait_equal(&server);
    check(client, &mut of_client, "lag ");
    check(server, &mut of_server, "serving ");
}

/// A supervisor that does not read its socket does not hold up the daemon.
#[test]
fn a_supervisor_that_does_not_read_stops_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let _socket = UnixDatagram::bind(&path).unwrap();
    let storage = directory.path().join("server");
    let mut command = wrapped(&[], "syncd-server", &storage, &QUIET);
    // Fast enough to fill the socket.
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "2000").env_remove("WATCHDOG_PID");
    let mut server = start(command, &storage);
    for n in 0..50 {
        assert_eq!(server.put(&format!("key-{n}"), b"x").status, 200);
    }
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log_tail());
}
