//! Command lines and environment, validated before a port is bound or a file is made.

pub mod client;
pub mod server;

use crate::{
    database::types::{Family, Mode},
    exit, stdio,
    telemetry::logs::LogFormat,
};
use clap::{Args, Parser};
use std::{ffi::OsString, fmt, io::Write as _, net::IpAddr, path::PathBuf, time::Duration};

/// A value that cannot be used: becomes one line on stderr and exit 64.
#[derive(Debug, thiserror::Error)]
#[error("invalid value '{value}' for {flag}: {allowed}")]
pub struct Invalid {
    /// The flag.
    pub flag: &'static str,
    /// What was given.
    pub value: String,
    /// What is allowed.
    pub allowed: String,
}

/// Makes an [`Invalid`].
pub fn invalid(
    flag: &'static str,
    value: impl fmt::Display,
    allowed: impl Into<String>,
) -> Invalid {
    Invalid { flag, value: value.to_string(), allowed: allowed.into() }
}

/// Flags of both daemons.
#[derive(Clone, Debug, Args)]
pub struct CommonArgs {
    /// Format of the log on stderr [default: json, text on a terminal]
    #[arg(long, env = "SYNCD_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
    /// Level of the log: error, warn, info, debug, trace, directives like 'syncd=debug', or @FILE
    /// with one of these, which is read again on SIGHUP
    #[arg(long, env = "SYNCD_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// How long a stop may take before it is forced (like 10s)
    #[arg(long, env = "SYNCD_SHUTDOWN_GRACE", default_value = "10s", value_parser = duration)]
    pub shutdown_grace: Duration,
    /// How long commits are kept for followers (like 1h)
    #[arg(long, env = "SYNCD_LOG_RETENTION", default_value = "1h", value_parser = duration)]
    pub log_retention: Duration,
    /// Most bytes of commits kept for followers (like 1GiB, 64MiB)
    #[arg(long, env = "SYNCD_LOG_RETENTION_BYTES", default_value = "1GiB", value_parser = bytes)]
    pub log_retention_bytes: u64,
    /// Operations kept below the floor: a number, or all
    #[arg(long, env = "SYNCD_RETAIN_OPERATIONS", default_value = "all", value_parser = amount_or_all)]
    pub retain_operations: Amount,
    /// Bearer token that reads must carry, in a file
    #[arg(long, env = "SYNCD_READ_TOKEN_FILE")]
    pub read_token_file: Option<PathBuf>,
}

/// A number, or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount(pub Option<u64>);

/// Parses a command line; prints and exits on `--help` (0) and on nonsense (64).
pub fn parse_or_exit<A: Parser>(arguments: impl IntoIterator<Item = OsString>) -> A {
    A::try_parse_from(arguments).unwrap_or_else(|error| {
        let code = if error.use_stderr() {
            stdio::note(one_line(&error.to_string()));
            exit::USAGE
        } else {
            // Help and version.
            print_help(&error)
        };
        stdio::flush();
        std::process::exit(code.into())
    })
}

/// Prints to standard output; returns the exit code.
fn print_help(help: &clap::Error) -> u8 {
    match help.print().and_then(|()| std::io::stdout().flush()) {
        Ok(()) => exit::OK,
        Err(error) => {
            let code = stdio::exit_code(&error);
            if code != exit::PIPE {
                stdio::note(format_args!("standard output: {error}"));
            }
            code
        }
    }
}

/// The first paragraph of a message, on one line.
fn one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim).take_while(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

/// Parses a port; 0 is one that the system chooses.
pub fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "a port from 0 to 65535".into())
}

/// Parses `250ms`, `2s`, `5m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= Duration::from_secs(10 * 365 * 86_400) => Ok(duration),
        Ok(_) => Err("a duration of at most 10 years".into()),
        Err(_) => Err("a duration like 250ms, 2s, 5m or 1h".into()),
    }
}

/// Parses a duration that is not zero.
pub fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval.is_zero() { Err("a duration above zero".into()) } else { Ok(interval) }
}

/// Parses `1048576`, `64MiB`, `1GiB`, `10MB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    const ALLOWED: &str = "a number of bytes like 1048576, 64MiB or 1GiB";
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(ALLOWED.into()),
    };
    let number: u64 = number.parse().map_err(|_| ALLOWED)?;
    number.checked_mul(factor).ok_or_else(|| ALLOWED.into())
}

fn amount_or_all(text: &str) -> Result<Amount, String> {
    match text {
        "all" => Ok(Amount(None)),
        number => number.parse().map(|n| Amount(Some(n))).map_err(|_| "a number, or all".into()),
    }
}

/// Parses bytes a second, or `unlimited`.
pub fn rate_or_unlimited(text: &str) -> Result<Amount, String> {
    match text {
        "unlimited" => Ok(Amount(None)),
        rate => match bytes(rate) {
            Ok(rate) if rate > 0 => Ok(Amount(Some(rate))),
            _ => Err("bytes a second like 1MiB, or unlimited".into()),
        },
    }
}

/// Whether a host is this machine.
pub fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// An address to listen on; names are not resolved here, so that a typo is no lookup.
pub fn listen_address(flag: &'static str, host: &str) -> Result<IpAddr, Invalid> {
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(IpAddr::from([127, 0, 0, 1]));
    }
    host.parse().map_err(|_| {
        invalid(
            flag,
            host,
            "an IP address to listen on like 127.0.0.1, 0.0.0.0 or ::, or localhost",
        )
    })
}

/// The default storage directory of `role`.
pub fn default_storage_dir(role: &str) -> Result<PathBuf, Invalid> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("XDG_STATE_HOME")
        .or_else(|| var("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("syncd").join(role))
        .ok_or_else(|| {
            invalid("--storage-dir", "", "needed where neither XDG_STATE_HOME nor HOME is set")
        })
}

/// A bearer token and where it is read from.
#[derive(Clone)]
pub struct TokenFile {
    path: PathBuf,
    flag: &'static str,
}

/// A token; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The bytes, for comparison.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.path, f)
    }
}

/// Shortest token accepted, in bytes.
const TOKEN_LENGTH_MIN: usize = 8;

impl TokenFile {
    /// A token file that was read once already, so that its absence is a usage error.
    pub fn checked(flag: &'static str, path: PathBuf) -> Result<Self, Invalid> {
        let file = Self { path, flag };
        file.load()?;
        Ok(file)
    }

    /// Reads the token.
    pub fn load(&self) -> Result<Secret, Invalid> {
        let path = self.path.display().to_string();
        let text = std::fs::read_to_string(&self.path)
            .map_err(|error| invalid(self.flag, &path, format!("a readable file ({error})")))?;
        let token = text.trim();
        if token.len() < TOKEN_LENGTH_MIN || !token.bytes().all(|b| b.is_ascii_graphic()) {
            let allowed =
                format!("a file with one token of at least {TOKEN_LENGTH_MIN} visible characters");
            return Err(invalid(self.flag, &path, allowed));
        }
        Ok(Secret(token.into()))
    }
}

/// Checks that a family has a mode.
pub fn check_mode(flag: &'static str, mode: Mode, family: Family) -> Result<(), Invalid> {
    if mode == Mode::Full || matches!(family, Family::Immutable | Family::Keyless) {
        return Ok(());
    }
    let allowed = format!("full with --db {family}; compact is of immutable and keyless");
    Err(invalid(flag, mode, allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_parsed() {
        for (text, expected) in [
            ("0", Some(0)),
            ("64MiB", Some(64 << 20)),
            ("1GiB", Some(1 << 30)),
            ("10kB", Some(10_000)),
        ] {
            assert_eq!(bytes(text).ok(), expected, "{text}");
        }
        for wrong in ["", "MiB", "-1", "1.5GiB", "99999999999999TiB", "1XB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn loopback_is_recognised() {
        for host in ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["0.0.0.0", "10.0.0.1", "localhost.example.org", "::"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
