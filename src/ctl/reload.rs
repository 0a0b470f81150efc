//! `reload`.

use super::{Failure, output::print_line};
use crate::{
    config,
    control::{SOCKET, ask_reload},
    directory, exit,
};
use clap::Args;
use std::{
    io::{self, ErrorKind},
    path::PathBuf,
    time::Duration,
};

/// Arguments of `reload`.
#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    /// Storage directory of the running daemon
    #[arg(short = 'd', long, env = "SYNCD_STORAGE_DIR")]
    storage_dir: PathBuf,
    /// How long the answer may take (like 10s)
    #[arg(long, env = "SYNCD_TIMEOUT", default_value = "10s", value_parser = config::interval)]
    timeout: Duration,
}

/// Asks the daemon that has the directory to reload, and says what it did.
pub(super) fn run(args: &ReloadArgs) -> Result<(), Failure> {
    let report =
        ask_reload(&args.storage_dir, args.timeout).map_err(|error| no_answer(args, &error))?;
    for what in &report.reloaded {
        print_line(format!("reloaded: {what}"))?;
    }
    if report.failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(exit::DATA, format!("not reloaded: {}", report.failed.join("; "))))
}

/// Why there is no answer, and what to do instead.
fn no_answer(args: &ReloadArgs, error: &io::Error) -> Failure {
    let directory = args.storage_dir.display();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            match directory::is_locked(&args.storage_dir) {
                Ok(true) => Failure::new(
                    exit::TEMPORARY,
                    format!(
                        "the daemon on {directory} does not listen on {SOCKET}: it is starting, runs on another machine, or \
                     its file system has no sockets; SIGHUP, sent to it where it runs, does the same"
                    ),
                ),
                Ok(false) => {
                    Failure::new(exit::TEMPORARY, format!("no daemon is running on {directory}"))
                }
                Err(error) => error.into(),
            }
        }
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Failure::new(
            exit::TEMPORARY,
            format!(
                "the daemon on {directory} did not answer within {:?}: it is starting or stopping",
                args.timeout
            ),
        ),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            Failure::new(exit::TEMPORARY, format!("the daemon on {directory} is stopping"))
        }
        _ => {
            Failure::new(exit::IO, format!("{}: {error}", args.storage_dir.join(SOCKET).display()))
        }
    }
}
