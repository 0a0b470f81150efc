//! Standard output and standard error that cannot be written: exit codes as documented, and no panic.

use crate::common::{Daemon, command};
use std::{
    fs::File,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

/// A device that is always full.
fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// A pipe that its reader has closed.
fn closed_pipe() -> Stdio {
    let (_, writer) = std::io::pipe().unwrap();
    writer.into()
}

/// Runs to the end; the exit code, and what was written to streams that are pipes.
fn run(mut command: Command, stdout: Stdio, stderr: Stdio) -> (i32, String, String) {
    let mut child = command.stdin(Stdio::piped()).stdout(stdout).stderr(stderr).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(b"{\"key\":\"i\",\"value\":\"1\"}\n");
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let code = output.status.code().expect("no signal ended it");
    (code, text(output.stdout), text(output.stderr))
}

/// Runs what `make` makes (anew each time, for it may create files) with every kind of broken stream.
fn check(name: &str, make: &mut dyn FnMut() -> Command) {
    let (code, output, error) = run(make(), Stdio::piped(), Stdio::piped());
    assert!(code != 101 && !error.contains("panicked"), "{name}: {code} {error}");
    assert!(!error.contains("internal error"), "{name}: {error}");
    for stderr in [full(), closed_pipe()] {
        // What cannot be said changes nothing.
        let found = run(make(), Stdio::piped(), stderr).0;
        assert_eq!(found, code, "{name} with a broken stderr: {output} {error}");
    }
    let writes = !output.is_empty();
    let (found, _, error) = run(make(), full(), Stdio::piped());
    assert_eq!(found, if writes { 74 } else { code }, "{name} >/dev/full: {error}");
    assert!(!writes || error.contains("standard output"), "{name} >/dev/full: {error}");
    let (found, _, error) = run(make(), closed_pipe(), Stdio::piped());
    assert_eq!(found, if writes { 141 } else { code }, "{name} | true: {error}");
    assert!(!writes || !error.contains("syncctl:"), "{name} | true is quiet: {error}");
    let (found, ..) = run(make(), full(), full());
    assert_eq!(found, if writes { 74 } else { code }, "{name} >/dev/full 2>&1");
    // Closed before the program begins: the language's runtime puts /dev/null in its place.
    let made = make();
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" >&- 2>&-"]).arg(made.get_program()).args(made.get_args());
    assert_eq!(run(shell, Stdio::null(), Stdio::null()).0, code, "{name} >&- 2>&-");
}

/// Command lines that need no daemon: help and nonsense for each program, and what they print by themselves.
#[test]
fn command_lines_end_as_documented_whatever_cannot_be_written() {
    let programs: [(&str, &[&str]); 7] = [
        ("syncd-server", &["--db", "nonsense"]),
        ("syncd-client", &["--follow", "nonsense"]),
        ("syncctl", &["get"]),
        ("syncctl", &["nonsense"]),
        ("syncd-server", &["--help"]),
        ("syncd-client", &["--version"]),
        ("syncctl", &["get", "--help"]),
    ];
    for (program, arguments) in programs {
        let name = format!("{program} {}", arguments.join(" "));
        check(&name, &mut || {
            let mut command = command(program);
            command.args(arguments);
            command
        });
    }
}

/// Every subcommand of `syncctl`, with a daemon or without.
#[test]
fn subcommands_end_as_documented_whatever_cannot_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &["-i", "10"]);
    assert_eq!(server.put("there", b"value").status, 200);
    let storage = server.storage.display().to_string();
    let public = server.storage.join("public/publisher.pub").display().to_string();
    let id = server.storage.join("public/database.id").display().to_string();
    let none = directory.path().join("none").display().to_string();
    let api = ["--api", server.api.as_str()];
    let with_api = |words: &[&'static str]| -> Vec<String> {
        words.iter().chain(&api).map(ToString::to_string).collect()
    };
    let words = |words: &[&str]| -> Vec<String> { words.iter().map(ToString::to_string).collect() };
    let mut cases = vec![
        with_api(&["get", "there"]),
        with_api(&["get", "absent"]),
        with_api(&["put", "a", "1"]),
        with_api(&["delete", "a"]),
        with_api(&["import", "-"]),
        with_api(&["export"]),
        with_api(&["status"]),
        with_api(&["status", "--json"]),
        with_api(&["proof", "--location", "3"]),
        with_api(&["wait", "--timeout", "100ms"]),
        words(&["health", "--url", &server.metrics]),
        words(&["health", "--url", "http://127.0.0.1:9"]),
        words(&["reload", "-d", &storage]),
        words(&["reload", "-d", &none]),
        words(&["new-epoch", "-d", &storage]),
        words(&["rotate-key", "-d", &storage]),
        words(&["adopt-database", "-d", &none, &id]),
        words(&["verify", &none, "--trusted-key", &public, "--database", &id]),
        words(&["verify-evidence", &none, "--trusted-key", &public]),
    ];
    for case in &mut cases {
        let name = format!("syncctl {}", case.join(" "));
        check(&name, &mut || {
            let mut command = command("syncctl");
            command.args(case.iter());
            command
        });
    }
    check_new_files(directory.path(), &api);
}

/// Subcommands that make files: another one each time.
fn check_new_files(directory: &Path, api: &[&str]) {
    let mut n = 0;
    let mut next = move || {
        n += 1;
        n
    };
    check("syncctl keygen", &mut || {
        let mut command = command("syncctl");
        command.args(["keygen", "-o"]).arg(directory.join(format!("key-{}", next())));
        command
    });
    check("syncctl keygen --stack", &mut || {
        let mut command = command("syncctl");
        command.args(["keygen", "--stack"]).arg(directory.join("stack"));
        command
    });
    check("syncctl export -o", &mut || {
        let mut command = command("syncctl");
        command.args(["export", "-o"]).arg(directory.join("export")).args(api);
        command
    });
}

/// A daemon whose log cannot be written works and ends in order.
#[test]
fn a_daemon_with_a_full_log_works() {
    let directory = tempfile::tempdir().unwrap();
    let storage = directory.path().join("server");
    for stderr in [full(), closed_pipe()] {
        let mut command = super::wrapped(&[], "syncd-server", &storage, &super::QUIET);
        let _ = std::fs::remove_file(storage.join("public/endpoints.json"));
        let mut server = Daemon::of(command.stderr(stderr).spawn().unwrap(), &storage);
        server.wait_listening();
        assert_eq!(server.put("a", b"1").status, 200);
        assert!(server.metric("syncd_log_lines_dropped_total") > 0.0);
        server.stop();
    }
}
