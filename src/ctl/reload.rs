//! `reload`.

use super::{Failure, output::print_line};
use crate::{exit, lifecycle};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use std::path::PathBuf;

/// Arguments of `reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// Storage directory of the running daemon
    #[arg(short = 'd', long, env = "SYNCD_STORAGE_DIR")]
    storage_dir: PathBuf,
}

/// Sends SIGHUP to the daemon that has the directory: for containers, where nothing else can.
pub fn run(args: &ReloadArgs) -> Result<(), Failure> {
    let directory = args.storage_dir.display();
    let owner = lifecycle::owner_of(&args.storage_dir)?;
    let Some(number) = owner else {
        let message = format!("no daemon is running on {directory}");
        return Err(Failure::new(exit::TEMPORARY, message));
    };
    let process = i32::try_from(number).ok().and_then(Pid::from_raw);
    let result = process.map(|process| kill_process(process, Signal::HUP));
    match result {
        Some(Ok(())) => print_line(format!("process {number} reloads; its log says what")),
        Some(Err(error)) => {
            Err(Failure::new(exit::IO, format!("cannot signal process {number}: {error}")))
        }
        None => Err(Failure::new(exit::DATA, format!("{directory}: '{number}' is no process"))),
    }
}
