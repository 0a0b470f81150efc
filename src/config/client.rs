//! Configuration of `syncd-client`.

use super::{
    CommonArgs, Invalid, TokenFile, check_mode, default_storage_dir, duration, interval, invalid,
    is_loopback, listen_address, port, server::history,
};
use crate::{
    database::types::{Family, Mode},
    ledger::History,
    link::host_and_port,
    wire::RESPONSE_OPERATIONS_MAX,
};
use clap::{Parser, ValueEnum};
use std::{
    net::SocketAddr,
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

/// Operations per request (docs/PERFORMANCE.md).
pub const DEFAULT_BATCH_SIZE: u64 = 1000;
/// Requests in flight (docs/PERFORMANCE.md).
pub const DEFAULT_OUTSTANDING: usize = 16;
/// Most requests in flight: what a server works on for one connection.
const OUTSTANDING_MAX: usize = crate::serve::limits::REQUESTS_IN_FLIGHT_MAX;

/// How commits come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Follow {
    /// As they are made.
    Push,
    /// An iteration every --sync-interval.
    Poll,
}

/// What to do when the publisher is found to have signed two histories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnEquivocation {
    /// Serve the last verified state on.
    Serve,
    /// End with exit code 65.
    Exit,
}

/// Keeps a verified replica, follows it live, answers reads
#[derive(Clone, Debug, Parser)]
#[command(name = "syncd-client", version)]
pub struct Args {
    /// Family of the database; must be the server's
    #[arg(long, env = "SYNCD_DB", default_value = "any")]
    pub db: Family,
    /// What is kept: full or compact
    #[arg(long, env = "SYNCD_MODE", default_value = "full")]
    pub mode: Mode,
    /// Server as HOST:PORT; a name is resolved again at each connection
    #[arg(short, long, env = "SYNCD_SERVER", default_value = "127.0.0.1:8080")]
    pub server: String,
    /// Public transport key of the server, hex or file [default: that of a local server]
    #[arg(long, env = "SYNCD_SERVER_KEY")]
    pub server_key: Option<String>,
    /// Publisher key to trust, hex or file; repeatable [default: that of a local server]
    #[arg(long, env = "SYNCD_TRUSTED_KEY", value_delimiter = ',')]
    pub trusted_key: Vec<String>,
    /// Identity of the database, hex or file; pinned on first use [default: that of a local server]
    #[arg(long, env = "SYNCD_DATABASE")]
    pub database: Option<String>,
    /// Oldest signature that counts as fresh (like 60s)
    #[arg(long, env = "SYNCD_MAX_AGE", default_value = "60s", value_parser = interval)]
    pub max_age: Duration,
    /// Clock difference tolerated (like 10s)
    #[arg(long, env = "SYNCD_HANDSHAKE_SKEW", default_value = "10s", value_parser = interval)]
    pub handshake_skew: Duration,
    /// Operations per request in a state sync
    #[arg(short, long, env = "SYNCD_BATCH_SIZE", default_value_t = DEFAULT_BATCH_SIZE)]
    pub batch_size: u64,
    /// Requests in flight in a state sync
    #[arg(short = 'r', long, env = "SYNCD_MAX_OUTSTANDING_REQUESTS", default_value_t = DEFAULT_OUTSTANDING)]
    pub max_outstanding_requests: usize,
    /// Where everything is kept [default: $XDG_STATE_HOME/syncd/client]
    #[arg(short = 'd', long, env = "SYNCD_STORAGE_DIR")]
    pub storage_dir: Option<PathBuf>,
    /// Port of /metrics, /livez and /readyz
    #[arg(short, long, env = "SYNCD_METRICS_PORT", default_value_t = 9091, value_parser = port)]
    pub metrics_port: u16,
    /// Address of /metrics, /livez and /readyz
    #[arg(long, env = "SYNCD_METRICS_HOST", default_value = "127.0.0.1")]
    pub metrics_host: String,
    /// Port of the HTTP API
    #[arg(long, env = "SYNCD_API_PORT", default_value_t = 8082, value_parser = port)]
    pub api_port: u16,
    /// Address of the HTTP API; other than loopback only with --read-token-file
    #[arg(long, env = "SYNCD_API_HOST", default_value = "127.0.0.1")]
    pub api_host: String,
    /// Private key of the transport [default: made in the storage directory]
    #[arg(long, env = "SYNCD_IDENTITY_KEY")]
    pub identity_key: Option<PathBuf>,
    /// Largest lag at which the client counts as ready (like 30s)
    #[arg(long, env = "SYNCD_READY_MAX_LAG", default_value = "30s", value_parser = interval)]
    pub ready_max_lag: Duration,
    /// How commits come
    #[arg(long, env = "SYNCD_FOLLOW", value_enum, default_value = "push")]
    pub follow: Follow,
    /// How often a newer target is asked for where none is pushed (like 1s)
    #[arg(short, long, env = "SYNCD_TARGET_UPDATE_INTERVAL", default_value = "1s", value_parser = interval)]
    pub target_update_interval: Duration,
    /// Pause between iterations of --follow poll (like 10s)
    #[arg(short = 'i', long, env = "SYNCD_SYNC_INTERVAL", default_value = "10s", value_parser = duration)]
    pub sync_interval: Duration,
    /// What to do when the publisher is found to have signed two histories
    #[arg(long, env = "SYNCD_ON_EQUIVOCATION", value_enum, default_value = "serve")]
    pub on_equivocation: OnEquivocation,
    /// Flags of both daemons.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// A checked configuration.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "as the flags of the same names")]
pub struct Config {
    pub family: Family,
    pub mode: Mode,
    pub host: String,
    pub port: u16,
    pub server_key: Option<String>,
    pub trusted_keys: Vec<String>,
    pub database: Option<String>,
    pub max_age: Duration,
    pub skew: Duration,
    pub batch: NonZeroU64,
    pub outstanding: NonZeroUsize,
    pub storage_dir: PathBuf,
    pub metrics: SocketAddr,
    pub api: SocketAddr,
    pub read_token: Option<TokenFile>,
    pub identity_key: Option<PathBuf>,
    pub ready_max_lag: Duration,
    pub follow: Follow,
    pub target_update_interval: Duration,
    pub sync_interval: Duration,
    pub on_equivocation: OnEquivocation,
    pub history: History,
    pub common: CommonArgs,
}

/// Splits `HOST:PORT`, `[V6]:PORT`.
fn server_address(text: &str) -> Result<(String, u16), Invalid> {
    host_and_port(text).ok_or_else(|| {
        invalid("--server", text, "HOST:PORT like 127.0.0.1:8080, name.example:8080 or [::1]:8080")
    })
}

impl Args {
    /// Checks every value; touches no port and makes no file.
    pub fn validate(self) -> Result<Config, Invalid> {
        check_mode("--mode", self.mode, self.db)?;
        let (host, port) = server_address(&self.server)?;
        let missing = [
            ("--server-key", self.server_key.is_none()),
            ("--trusted-key", self.trusted_key.is_empty()),
            ("--database", self.database.is_none()),
        ];
        if !is_loopback(&host)
            && let Some((flag, _)) = missing.iter().find(|(_, missing)| *missing)
        {
            let allowed = "needed where the server is not on this machine: hex or a file";
            return Err(invalid(flag, "", allowed));
        }
        check_keys(&self)?;
        let api_host = listen_address("--api-host", &self.api_host)?;
        if !is_loopback(&self.api_host) && self.common.read_token_file.is_none() {
            let allowed = "a loopback address, or any with --read-token-file";
            return Err(invalid("--api-host", &self.api_host, allowed));
        }
        let batch = NonZeroU64::new(self.batch_size)
            .filter(|batch| batch.get() <= RESPONSE_OPERATIONS_MAX)
            .ok_or_else(|| {
                invalid("--batch-size", self.batch_size, format!("1 to {RESPONSE_OPERATIONS_MAX}"))
            })?;
        let outstanding = NonZeroUsize::new(self.max_outstanding_requests)
            .filter(|outstanding| outstanding.get() <= OUTSTANDING_MAX)
            .ok_or_else(|| {
                invalid(
                    "--max-outstanding-requests",
                    self.max_outstanding_requests,
                    format!("1 to {OUTSTANDING_MAX}"),
                )
            })?;
        let read_token = self.common.read_token_file.clone();
        Ok(Config {
            family: self.db,
            mode: self.mode,
            host,
            port,
            server_key: self.server_key,
            trusted_keys: self.trusted_key,
            database: self.database,
            max_age: self.max_age,
            skew: self.handshake_skew,
            batch,
            outstanding,
            storage_dir: match self.storage_dir {
                Some(directory) => directory,
                None => default_storage_dir("client")?,
            },
            metrics: SocketAddr::new(
                listen_address("--metrics-host", &self.metrics_host)?,
                self.metrics_port,
            ),
            api: SocketAddr::new(api_host, self.api_port),
            read_token: read_token
                .map(|path| TokenFile::checked("--read-token-file", path))
                .transpose()?,
            identity_key: self.identity_key,
            ready_max_lag: self.ready_max_lag,
            follow: self.follow,
            target_update_interval: self.target_update_interval,
            sync_interval: self.sync_interval,
            on_equivocation: self.on_equivocation,
            history: history(&self.common),
            common: self.common,
        })
    }
}

/// Keys that are given must be keys.
fn check_keys(args: &Args) -> Result<(), Invalid> {
    let public = |flag, text: &String| {
        crate::keys::parse_public(text).map_err(|error| invalid(flag, text, error.to_string()))
    };
    args.server_key.as_ref().map(|key| public("--server-key", key)).transpose()?;
    for key in &args.trusted_key {
        public("--trusted-key", key)?;
    }
    if let Some(database) = &args.database {
        crate::keys::parse_database(database)
            .map_err(|error| invalid("--database", database, error.to_string()))?;
    }
    Ok(())
}
