//! `wait`.

use super::{ApiArgs, CLIENT_API, Failure, http::Api, output::print_line, status};
use crate::{
    config::{self, invalid},
    exit,
};
use clap::Args;
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// How often is asked.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// How long one answer may take, so that one that does not come does not outlast the deadline by much.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Arguments of `wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// URL of the client's API
    #[arg(long, env = "SYNCD_API", default_value = CLIENT_API)]
    api: String,
    /// URL of the server's API: wait for the size that it has now
    #[arg(long, env = "SYNCD_SERVER_API")]
    server_api: Option<String>,
    /// Wait for this size
    #[arg(long, env = "SYNCD_SIZE")]
    size: Option<u64>,
    /// How long at most (like 60s)
    #[arg(long, env = "SYNCD_TIMEOUT", default_value = "60s", value_parser = config::interval)]
    timeout: Duration,
    /// Bearer token, in a file
    #[arg(long, env = "SYNCD_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

/// Waits until the client has caught up.
pub fn run(args: &WaitArgs) -> Result<(), Failure> {
    let api = |flag: &'static str, url: &str| {
        let args = ApiArgs {
            api: url.into(),
            token_file: args.token_file.clone(),
            request_timeout: args.timeout.min(ANSWER_MAX),
        };
        Api::to(flag, &args)
    };
    let client = api("--api", &args.api)?;
    let server = args.server_api.as_deref().map(|url| api("--server-api", url)).transpose()?;
    let deadline = Instant::now() + args.timeout;
    let mut size = args.size;
    loop {
        let failure = match look(&client, server.as_ref(), &mut size) {
            Ok(line) => return print_line(line),
            // What is refused now will be refused later too.
            Err(failure) if failure.code != exit::TEMPORARY => return Err(failure),
            Err(failure) => failure,
        };
        if Instant::now() >= deadline {
            let text = format!("not caught up within {:?}: {failure}", args.timeout);
            return Err(Failure::new(exit::TEMPORARY, text));
        }
        std::thread::sleep(ASK_INTERVAL);
    }
}

/// Looks once. The size to wait for is the server's when it first answered, if it is not given.
fn look(client: &Api, server: Option<&Api>, size: &mut Option<u64>) -> Result<String, Failure> {
    if let (Some(server), None) = (server, *size) {
        *size = status::ask(server)?["size"].as_u64();
        if size.is_none() {
            return Err(Failure::new(exit::DATA, format!("{} has no size", server.base())));
        }
    }
    caught_up(client, size.unwrap_or(1))
}

/// A line about the state if the client has at least `size` operations and lags behind nothing.
fn caught_up(client: &Api, size: u64) -> Result<String, Failure> {
    let status = status::ask(client)?;
    if status["role"] == "server" {
        let allowed = format!("the API of a client, like {CLIENT_API}; this is a server's");
        return Err(invalid("--api", client.base(), allowed).into());
    }
    let number = |name: &str| status[name].as_u64();
    let has = number("size").unwrap_or(0);
    let state = status["state"].as_str().unwrap_or_default();
    let live = state == "following" || state == "polling";
    if live && number("lag_operations") == Some(0) && has >= size {
        let root = status["root"].as_str().unwrap_or("-");
        return Ok(format!("{has} operations, root {root}"));
    }
    let wanted = number("target_size").unwrap_or(0).max(size);
    Err(Failure::new(exit::TEMPORARY, format!("{state}, {has} of {wanted} operations")))
}
