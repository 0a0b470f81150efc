//! `syncctl reload` reaches the daemon that holds the directory, and no other process.

use super::{QUIET, may_unshare, start, wrapped};
use crate::common::{Daemon, command, syncctl};
use std::process::Command;

const UNSHARE: [&str; 3] = ["unshare", "-pf", "--kill-child"];

/// Daemon and operator are each in a PID namespace of their own, as in two containers that share the directory; both
/// have a process 1.
#[test]
fn a_reload_crosses_pid_namespaces_and_signals_nobody() {
    if !may_unshare("a_reload_crosses_pid_namespaces_and_signals_nobody", "-pf") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let storage = directory.path().join("server");
    let level = directory.path().join("level");
    std::fs::write(&level, "info").unwrap();
    let flag = format!("@{}", level.display());
    let options = [&QUIET[..], &["--log-level", &flag]].concat();
    let server = start(wrapped(&UNSHARE, "syncd-server", &storage, &options), &storage);
    let shell = "trap 'echo process 1 was signalled' HUP; \"$0\" reload -d \"$1\"; code=$?; sleep 0.2; exit $code";
    let output = Command::new(UNSHARE[0])
        .args(&UNSHARE[1..])
        .args(["sh", "-c", shell])
        .arg(command("syncctl").get_program())
        .arg(&storage)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(said.contains("reloaded: log level") && !said.contains("signalled"), "{said}");
    assert!(server.log_text().contains("log level reloaded"), "{}", server.log_text());
    // Who holds the directory is not named by a number that is somebody else's here.
    let second = wrapped(&[], "syncd-server", &storage, &QUIET).output().unwrap();
    let error = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(75), "{error}");
    assert!(error.contains("process 1 of another PID namespace"), "{error}");
}

/// What cannot be reloaded is named by the command, and a daemon that is gone is not asked.
#[test]
fn a_reload_says_what_the_daemon_did() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "first-token").unwrap();
    let name = token.display().to_string();
    let server =
        Daemon::server(&directory.path().join("server"), &["--api-token-file", name.as_str()]);
    let storage = server.storage.display().to_string();
    let reload = || {
        let output = syncctl(&["reload", "-d", &storage]);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    };
    let (code, text) = reload();
    assert!(code == 0 && text.contains("reloaded: write token"), "{code}: {text}");
    std::fs::write(&token, "short").unwrap();
    let (code, text) = reload();
    assert!(code == 65 && text.contains("not reloaded") && text.contains(&name), "{code}: {text}");
    server.stop();
    let (code, text) = reload();
    assert!(code == 75 && text.contains("no daemon is running"), "{code}: {text}");
    assert!(!directory.path().join("server/control.sock").exists());
}
