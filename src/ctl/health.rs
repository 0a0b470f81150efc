//! `health`.

use super::{Failure, http::Api, output::print_line};
use crate::config;
use clap::{Args, builder::BoolishValueParser};
use std::time::Duration;

/// Arguments of `health`.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// URL of the metrics port
    #[arg(long, env = "SYNCD_URL", default_value = "http://127.0.0.1:9090")]
    url: String,
    /// Ask whether it is alive instead of ready
    #[arg(long, env = "SYNCD_LIVE", value_parser = BoolishValueParser::new())]
    live: bool,
    /// How long the answer may take (like 2s)
    #[arg(long, env = "SYNCD_TIMEOUT", default_value = "2s", value_parser = config::interval)]
    timeout: Duration,
}

/// Exit code 0 or 1, as probes want it; 64 for a wrong command line.
pub(super) fn run(args: &HealthArgs) -> Result<(), Failure> {
    let path = if args.live { "/livez" } else { "/readyz" };
    let url = args.url.trim_end_matches('/').trim_end_matches(path);
    let unhealthy = |message: String| Failure::new(1, message);
    let api = Api::without_token("--url", url, args.timeout)?;
    let answer = api.get(path).map_err(|failure| unhealthy(failure.message))?;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    if answer.status.is_success() { print_line(body) } else { Err(unhealthy(body)) }
}
