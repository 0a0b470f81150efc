//! `syncctl`: the operator's hand. Speaks HTTP only; blocking, one thread a connection.

mod demo;
mod export;
mod health;
mod http;
mod import;
mod keys;
mod lines;
mod output;
mod progress;
mod proof;
mod reload;
mod stack;
mod status;
mod values;
mod wait;

use crate::{config, exit, stdio};
use clap::{Args, Parser, Subcommand};
use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

/// Default URL of a server's API.
pub const SERVER_API: &str = "http://127.0.0.1:8081";
/// Default URL of a client's API.
pub const CLIENT_API: &str = "http://127.0.0.1:8082";

pub use crate::daemon::Failure;

/// How to reach an API.
#[derive(Clone, Debug, Args)]
pub struct ApiArgs {
    /// URL of the API
    #[arg(long, env = "SYNCD_API", default_value = SERVER_API)]
    pub api: String,
    /// Bearer token, in a file
    #[arg(long, env = "SYNCD_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// How long one request may take (like 30s)
    #[arg(long, env = "SYNCD_REQUEST_TIMEOUT", default_value = "30s", value_parser = config::interval)]
    pub request_timeout: Duration,
}

/// The operator's tool of syncd
#[derive(Debug, Parser)]
#[command(name = "syncctl", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key: writes the private half to a file, prints the public half
    Keygen(keys::KeygenArgs),
    /// Give a restored database a new identity; clients adopt it by hand. Idempotency keys are carried over
    NewEpoch(keys::NewEpochArgs),
    /// Let a new publisher key take over from the present one
    RotateKey(keys::RotateKeyArgs),
    /// Pin a client to another database, after a new epoch
    AdoptDatabase(keys::AdoptDatabaseArgs),
    /// Check a client's evidence that the publisher signed two histories; needs no network
    VerifyEvidence(keys::VerifyEvidenceArgs),
    /// Show how servers and clients stand
    Status(status::StatusArgs),
    /// Write records from an NDJSON file
    Import(import::ImportArgs),
    /// Read one consistent state as NDJSON
    Export(export::ExportArgs),
    /// Set a key
    Put(values::PutArgs),
    /// Read a key; exit code 1 if it is absent
    Get(values::GetArgs),
    /// Remove a key
    Delete(values::DeleteArgs),
    /// Fetch a proof of what a key holds, or of an operation
    Proof(proof::ProofArgs),
    /// Verify a proof file; needs no network. Exit code 65 if it proves nothing
    Verify(proof::VerifyArgs),
    /// Wait until a client has caught up; exit code 75 if it does not in time
    Wait(wait::WaitArgs),
    /// Let a daemon read its clients, tokens and log level again, as SIGHUP does
    Reload(reload::ReloadArgs),
    /// Ask a daemon whether it is ready, for probes
    Health(health::HealthArgs),
    /// Start a server and a client, import real records, watch them stay equal
    Demo(demo::DemoArgs),
    /// Run syncd-server
    #[command(hide = true, disable_help_flag = true)]
    Server(Passed),
    /// Run syncd-client
    #[command(hide = true, disable_help_flag = true)]
    Client(Passed),
}

/// Arguments that another program parses.
#[derive(Debug, Args)]
struct Passed {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Passed {
    fn with_name(self, name: &str) -> Vec<OsString> {
        std::iter::once(name.into()).chain(self.arguments).collect()
    }
}

/// Runs `syncctl` with a command line, the program's name first.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    stdio::run("syncctl", || run(arguments))
}

fn run(arguments: Vec<OsString>) -> ExitCode {
    let cli: Cli = config::parse_or_exit(arguments);
    let result = match cli.command {
        Command::Keygen(args) => keys::keygen(&args),
        Command::NewEpoch(args) => keys::new_epoch(&args),
        Command::RotateKey(args) => keys::rotate_key(&args),
        Command::AdoptDatabase(args) => keys::adopt_database(&args),
        Command::VerifyEvidence(args) => keys::verify_evidence(&args),
        Command::Status(args) => status::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Put(args) => values::put(&args),
        Command::Get(args) => values::get(&args),
        Command::Delete(args) => values::delete(&args),
        Command::Proof(args) => proof::proof(&args),
        Command::Verify(args) => proof::verify(&args),
        Command::Wait(args) => wait::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Server(passed) => return crate::server::main(passed.with_name("syncd-server")),
        Command::Client(passed) => return crate::client::main(passed.with_name("syncd-client")),
    };
    match result {
        Ok(()) => exit::OK.into(),
        Err(failure) => {
            if !failure.message.is_empty() {
                stdio::note(format_args!("syncctl: {failure}"));
            }
            failure.code.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn every_flag_is_read_from_the_environment() {
        let mut cli = Cli::command();
        cli.build();
        for command in cli.get_subcommands().filter(|command| !command.is_hide_set()) {
            for flag in command.get_arguments() {
                let Some(long) = flag.get_long().filter(|long| *long != "help") else { continue };
                let variable = format!("SYNCD_{}", long.replace('-', "_").to_uppercase());
                let name = command.get_name();
                assert_eq!(flag.get_env(), Some(variable.as_ref()), "{name} --{long}");
                assert!(!flag.is_hide_env_set(), "{name} --{long} hides its variable");
            }
        }
    }
}
