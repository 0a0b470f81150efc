//! `status`.

use super::{ApiArgs, CLIENT_API, Failure, SERVER_API, http::Api, output::print_line};
use crate::{
    config,
    documents::{Role, Status},
    exit,
};
use clap::{Args, builder::BoolishValueParser};
use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};
use serde_json::json;
use std::{path::PathBuf, time::Duration};

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// URLs of APIs [default: those of a server and a client on this machine]
    #[arg(long, env = "SYNCD_API", value_delimiter = ',')]
    api: Vec<String>,
    /// Bearer token, in a file
    #[arg(long, env = "SYNCD_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// How long one request may take (like 5s)
    #[arg(long, env = "SYNCD_REQUEST_TIMEOUT", default_value = "5s", value_parser = config::interval)]
    request_timeout: Duration,
    /// One JSON object for each API
    #[arg(long, env = "SYNCD_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
    /// Again every second
    #[arg(long, env = "SYNCD_WATCH", value_parser = BoolishValueParser::new())]
    watch: bool,
}

/// Shows how things stand; fails if nobody answers.
pub(super) fn run(args: &StatusArgs) -> Result<(), Failure> {
    let urls = if args.api.is_empty() {
        vec![SERVER_API.to_string(), CLIENT_API.to_string()]
    } else {
        args.api.clone()
    };
    let apis: Vec<Api> = urls
        .into_iter()
        .map(|api| {
            Api::new(&ApiArgs {
                api,
                token_file: args.token_file.clone(),
                request_timeout: args.request_timeout,
            })
        })
        .collect::<Result<_, _>>()?;
    loop {
        let rows: Vec<(&Api, Result<Status, Failure>)> =
            apis.iter().map(|api| (api, ask(api))).collect();
        print(&rows, args.json)?;
        if !args.watch {
            if rows.iter().any(|(_, status)| status.is_ok()) {
                return Ok(());
            }
            // An API that refuses will not do better later.
            let mut failures = rows.into_iter().filter_map(|(_, status)| status.err());
            let refused = failures.find(|failure| failure.code != exit::TEMPORARY);
            let nobody = || Failure::new(exit::TEMPORARY, "nobody answers");
            return Err(refused.unwrap_or_else(nobody));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// The status of one API.
pub(super) fn ask(api: &Api) -> Result<Status, Failure> {
    api.get("/v1/status")?.success()?.document()
}

fn print(rows: &[(&Api, Result<Status, Failure>)], as_json: bool) -> Result<(), Failure> {
    if as_json {
        for (api, status) in rows {
            let line = match status {
                Ok(status) => json!({"api": api.base(), "status": status}),
                Err(failure) => json!({"api": api.base(), "error": failure.message}),
            };
            print_line(line)?;
        }
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(["api", "role", "state", "size", "lag", "root", "last error"]);
    for (api, status) in rows {
        match status {
            Ok(status) => table.add_row(row(api, status)),
            Err(failure) => {
                let temporary = failure.code == exit::TEMPORARY;
                let state = if temporary { "unreachable" } else { "refused" };
                table.add_row([api.base(), "-", state, "-", "-", "-", &failure.message])
            }
        };
    }
    print_line(table)
}

fn row(api: &Api, status: &Status) -> [String; 7] {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let client = status.client.as_ref();
    let lag =
        client.map(|client| format!("{} ops, {:.1} s", client.lag_operations, client.lag_seconds));
    let state = match status.role {
        Role::Server => Some("serving".into()),
        Role::Client => client.map(|client| client.state.clone()),
    };
    [
        api.base().to_string(),
        status.role.to_string(),
        or_none(state),
        status.size.to_string(),
        or_none(lag),
        or_none(status.root.map(|root| root.to_string().chars().take(16).collect())),
        or_none(client.and_then(|client| client.last_error.clone())),
    ]
}
