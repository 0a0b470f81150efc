//! Configuration of `syncd-server`.

use super::{
    Amount, CommonArgs, Invalid, TokenFile, bytes, check_mode, default_storage_dir, interval,
    invalid, is_loopback, listen_address, port, rate_or_unlimited,
};
use crate::{
    commit_log::Retention,
    database::{
        Kind,
        types::{Family, HashKind, Mode, VALUE_LENGTH_MAX},
    },
    ledger::History,
    serve::limits::{HANDSHAKES_AT_ONCE_MAX, HANDSHAKES_PER_ADDRESS_MAX, Limits},
    server::core::Generator,
};
use clap::{Parser, parser::ValueSource};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// Hash of a new database (docs/adr/0002).
pub const DEFAULT_HASH: HashKind = HashKind::Blake3;

/// Owns an authenticated database, takes writes, signs every committed state, serves replicas
#[derive(Clone, Debug, Parser)]
#[command(name = "syncd-server", version)]
pub struct Args {
    /// Family of the database: any, current, immutable or keyless
    #[arg(long, env = "SYNCD_DB", default_value = "any")]
    pub db: Family,
    /// Which replicas are served: full (of either mode) or compact (only those)
    #[arg(long, env = "SYNCD_MODE", default_value = "full")]
    pub mode: Mode,
    /// What this server keeps: full, or compact (immutable and keyless; no reads, and no writes of
    /// keys)
    #[arg(long, env = "SYNCD_STORAGE", default_value = "full")]
    pub storage: Mode,
    /// Hash of a new database, sha256 or blake3; fixed when it is made [default: blake3]
    #[arg(long, env = "SYNCD_HASH")]
    pub hash: Option<HashKind>,
    /// Port for replicas
    #[arg(short, long, env = "SYNCD_PORT", default_value_t = 8080, value_parser = port)]
    pub port: u16,
    /// Address for replicas
    #[arg(long, env = "SYNCD_HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// Operations generated in a new database; one that is opened again gets none
    #[arg(short, long, env = "SYNCD_INITIAL_OPS", default_value_t = 100)]
    pub initial_ops: u64,
    /// Where everything is kept [default: $XDG_STATE_HOME/syncd/server]
    #[arg(short = 'd', long, env = "SYNCD_STORAGE_DIR")]
    pub storage_dir: Option<PathBuf>,
    /// Port of /metrics, /livez and /readyz
    #[arg(short, long, env = "SYNCD_METRICS_PORT", default_value_t = 9090, value_parser = port)]
    pub metrics_port: u16,
    /// Address of /metrics, /livez and /readyz
    #[arg(long, env = "SYNCD_METRICS_HOST", default_value = "127.0.0.1")]
    pub metrics_host: String,
    /// Time between two commits of the generator (like 100ms)
    #[arg(short = 't', long, env = "SYNCD_OP_INTERVAL", default_value = "100ms", value_parser = interval)]
    pub op_interval: Duration,
    /// Changes in each commit of the generator; 0 turns it off. A database that was made with it
    /// off is never written to by a default
    #[arg(short = 'o', long, env = "SYNCD_OPS_PER_INTERVAL", default_value_t = 5)]
    pub ops_per_interval: u16,
    /// Port of the HTTP API
    #[arg(long, env = "SYNCD_API_PORT", default_value_t = 8081, value_parser = port)]
    pub api_port: u16,
    /// Address of the HTTP API; other than loopback only with --api-token-file
    #[arg(long, env = "SYNCD_API_HOST", default_value = "127.0.0.1")]
    pub api_host: String,
    /// Bearer token that writes must carry, in a file
    #[arg(long, env = "SYNCD_API_TOKEN_FILE")]
    pub api_token_file: Option<PathBuf>,
    /// Private key of the transport [default: made in the storage directory]
    #[arg(long, env = "SYNCD_IDENTITY_KEY")]
    pub identity_key: Option<PathBuf>,
    /// Private key that signs checkpoints [default: made in the storage directory]
    #[arg(long, env = "SYNCD_PUBLISHER_KEY")]
    pub publisher_key: Option<PathBuf>,
    /// Public keys of the replicas that may connect, one a line [default: anyone]
    #[arg(long, env = "SYNCD_AUTHORIZED_CLIENTS")]
    pub authorized_clients: Option<PathBuf>,
    /// Most connections of replicas at once
    #[arg(long, env = "SYNCD_MAX_CONNECTIONS", default_value_t = 1024)]
    pub max_connections: u32,
    /// Most connections of replicas at once from one address (for IPv6, one /64 network)
    #[arg(long, env = "SYNCD_MAX_CONNECTIONS_PER_ADDRESS", default_value_t = 256)]
    pub max_connections_per_address: u32,
    /// Most handshakes a second from one address; five times as many may come at once
    #[arg(long, env = "SYNCD_MAX_HANDSHAKES_PER_SECOND", default_value_t = 50)]
    pub max_handshakes_per_second: u32,
    /// Most requests a second from one replica's key
    #[arg(long, env = "SYNCD_MAX_REQUESTS_PER_SECOND", default_value_t = 2000)]
    pub max_requests_per_second: u32,
    /// Most bytes a second to one replica's key (like 10MiB), or unlimited
    #[arg(long, env = "SYNCD_MAX_BYTES_PER_SECOND", default_value = "unlimited", value_parser = rate_or_unlimited)]
    pub max_bytes_per_second: Amount,
    /// Most write requests that may wait
    #[arg(long, env = "SYNCD_MAX_QUEUE_REQUESTS", default_value_t = 1024)]
    pub max_queue_requests: u32,
    /// Longest value accepted (at most 64KiB)
    #[arg(long, env = "SYNCD_MAX_VALUE_BYTES", default_value = "64KiB", value_parser = bytes)]
    pub max_value_bytes: u64,
    /// How often an unchanged state is signed again (like 5s)
    #[arg(long, env = "SYNCD_HEARTBEAT_INTERVAL", default_value = "5s", value_parser = interval)]
    pub heartbeat_interval: Duration,
    /// Flags of both daemons.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// A checked configuration.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "as the flags of the same names")]
pub struct Config {
    pub kind: Kind,
    pub hash_is_chosen: bool,
    pub mode: Mode,
    pub storage: Mode,
    pub listen: SocketAddr,
    pub initial_ops: u64,
    pub storage_dir: PathBuf,
    pub metrics: SocketAddr,
    pub generator: Generator,
    pub api: SocketAddr,
    pub api_token: Option<TokenFile>,
    pub read_token: Option<TokenFile>,
    pub identity_key: Option<PathBuf>,
    pub publisher_key: Option<PathBuf>,
    pub authorized_clients: Option<PathBuf>,
    pub limits: Limits,
    pub queue_requests_max: usize,
    pub value_length_max: usize,
    pub heartbeat_interval: Duration,
    pub history: History,
    pub common: CommonArgs,
}

/// Parses and checks a command line, or exits with 64.
pub fn from_args(arguments: Vec<std::ffi::OsString>) -> Result<Config, Invalid> {
    use clap::{CommandFactory as _, FromArgMatches as _};
    // Parsed by hand where it matters whether a value was given or is the default.
    let args: Args = super::parse_or_exit(arguments.clone());
    let chosen = Args::command()
        .try_get_matches_from(arguments)
        .ok()
        .map(|matches| {
            let source = matches.value_source("ops_per_interval");
            (Args::from_arg_matches(&matches).is_ok(), source)
        })
        .is_some_and(|(_, source)| !matches!(source, None | Some(ValueSource::DefaultValue)));
    args.validate(chosen)
}

impl Args {
    /// Checks every value; touches no port and makes no file.
    pub fn validate(self, generator_is_chosen: bool) -> Result<Config, Invalid> {
        check_mode("--mode", self.mode, self.db)?;
        check_mode("--storage", self.storage, self.db)?;
        if self.storage == Mode::Compact && self.mode != Mode::Compact {
            let allowed = "compact with --storage compact: it has nothing for full replicas";
            return Err(invalid("--mode", self.mode, allowed));
        }
        let api_host = listen_address("--api-host", &self.api_host)?;
        if !is_loopback(&self.api_host) && self.api_token_file.is_none() {
            let allowed = "a loopback address, or any with --api-token-file";
            return Err(invalid("--api-host", &self.api_host, allowed));
        }
        if let Some(path) = &self.authorized_clients {
            crate::keys::load_authorized(path).map_err(|error| {
                invalid("--authorized-clients", path.display(), format!("a list of keys ({error})"))
            })?;
        }
        let storage_dir = match self.storage_dir {
            Some(directory) => directory,
            None => default_storage_dir("server")?,
        };
        let token = |flag, path: Option<PathBuf>| {
            path.map(|path| TokenFile::checked(flag, path)).transpose()
        };
        let address = |host: IpAddr, port| SocketAddr::new(host, port);
        Ok(Config {
            kind: Kind { family: self.db, hash: self.hash.unwrap_or(DEFAULT_HASH) },
            hash_is_chosen: self.hash.is_some(),
            mode: self.mode,
            storage: self.storage,
            listen: address(listen_address("--host", &self.host)?, self.port),
            initial_ops: self.initial_ops,
            storage_dir,
            metrics: address(
                listen_address("--metrics-host", &self.metrics_host)?,
                self.metrics_port,
            ),
            generator: Generator {
                interval: self.op_interval,
                changes: usize::from(self.ops_per_interval),
                is_chosen: generator_is_chosen,
            },
            api: address(api_host, self.api_port),
            api_token: token("--api-token-file", self.api_token_file)?,
            read_token: token("--read-token-file", self.common.read_token_file.clone())?,
            identity_key: self.identity_key,
            publisher_key: self.publisher_key,
            authorized_clients: self.authorized_clients,
            limits: Limits {
                handshakes: HANDSHAKES_AT_ONCE_MAX,
                handshakes_per_address: HANDSHAKES_PER_ADDRESS_MAX,
                connections: positive("--max-connections", self.max_connections)?,
                connections_per_address: positive(
                    "--max-connections-per-address",
                    self.max_connections_per_address,
                )?,
                handshakes_per_second: rate(
                    "--max-handshakes-per-second",
                    self.max_handshakes_per_second,
                )?,
                requests_per_second: rate(
                    "--max-requests-per-second",
                    self.max_requests_per_second,
                )?,
                bytes_per_second: self.max_bytes_per_second.0,
            },
            queue_requests_max: positive("--max-queue-requests", self.max_queue_requests)?,
            value_length_max: value_length("--max-value-bytes", self.max_value_bytes)?,
            heartbeat_interval: self.heartbeat_interval,
            history: history(&self.common),
            common: self.common,
        })
    }
}

fn positive(flag: &'static str, value: u32) -> Result<usize, Invalid> {
    match usize::try_from(value) {
        Ok(value) if value > 0 => Ok(value),
        _ => Err(invalid(flag, value, "a number above 0")),
    }
}

fn rate(flag: &'static str, value: u32) -> Result<u32, Invalid> {
    positive(flag, value).map(|_| value)
}

fn value_length(flag: &'static str, value: u64) -> Result<usize, Invalid> {
    usize::try_from(value)
        .ok()
        .filter(|value| (1..=VALUE_LENGTH_MAX).contains(value))
        .ok_or_else(|| invalid(flag, value, format!("1 to {VALUE_LENGTH_MAX} bytes")))
}

/// How much history the common flags keep.
pub(super) const fn history(common: &CommonArgs) -> History {
    History {
        log: Retention {
            age: common.log_retention,
            bytes: common.log_retention_bytes,
            // As many as descriptors allow, which the start finds out.
            segments: usize::MAX,
        },
        operations: common.retain_operations.0,
    }
}
