//! `wait`.

use super::{ApiArgs, CLIENT_API, Failure, http::Api, status};
use crate::{config, exit};
use clap::Args;
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// How often is asked.
const ASK_INTERVAL: Duration = Duration::from_millis(100);

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
    let api = |url: &str| {
        Api::new(&ApiArgs {
            api: url.into(),
            token_file: args.token_file.clone(),
            request_timeout: args.timeout,
        })
    };
    let client = api(&args.api)?;
    let server = args.server_api.as_deref().map(api).transpose()?;
    let deadline = Instant::now() + args.timeout;
    let mut size = args.size;
    let mut last;
    loop {
        if let (Some(server), None) = (&server, size) {
            size = status::ask(server).ok().and_then(|status| status["size"].as_u64());
        }
        let wanted = size.is_some() || server.is_none();
        match caught_up(&client, size.unwrap_or(1)) {
            Ok(line) if wanted => {
                println!("{line}");
                return Ok(());
            }
            Ok(_) => last = "the server does not answer".to_string(),
            Err(reason) => last = reason,
        }
        if Instant::now() >= deadline {
            let text = format!("not caught up within {:?}: {last}", args.timeout);
            return Err(Failure::new(exit::TEMPORARY, text));
        }
        std::thread::sleep(ASK_INTERVAL);
    }
}

/// A line about the state if the client has at least `size` operations and lags behind nothing.
fn caught_up(client: &Api, size: u64) -> Result<String, String> {
    let status = status::ask(client).map_err(|failure| failure.message)?;
    let number = |name: &str| status[name].as_u64().unwrap_or(0);
    let state = status["state"].as_str().unwrap_or_default();
    let live = state == "following" || state == "polling";
    if live && number("lag_operations") == 0 && number("size") >= size {
        return Ok(format!(
            "{} operations, root {}",
            number("size"),
            status["root"].as_str().unwrap_or("-")
        ));
    }
    Err(format!("{state}, {} of {} operations", number("size"), number("target_size").max(size)))
}
