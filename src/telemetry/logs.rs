//! The log: one JSON object a line on stderr, or text for people.

use crate::config::LogFormat;
use std::io::IsTerminal as _;
use tracing_subscriber::{
    EnvFilter, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// Changes the level while the program runs.
#[derive(Clone)]
pub struct Level(reload::Handle<EnvFilter, Registry>);

/// A level like `info` for this program, with the libraries quieter; or directives as they are.
fn filter(level: &str) -> Result<EnvFilter, String> {
    let simple = ["off", "error", "warn", "info", "debug", "trace"].contains(&level);
    let directives = if simple {
        let library = if level == "off" || level == "error" { "error" } else { "warn" };
        format!("{library},syncd={level}")
    } else {
        level.to_string()
    };
    EnvFilter::try_new(&directives).map_err(|error| {
        format!("error, warn, info, debug, trace, or directives like 'syncd=debug' ({error})")
    })
}

/// The level that a flag names: itself, or what `@FILE` holds.
pub fn resolve(flag: &str) -> Result<String, String> {
    let level = match flag.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| format!("a level, or @FILE with one ({path}: {error})"))?,
        None => flag.to_string(),
    };
    let level = level.trim().to_string();
    check(&level)?;
    Ok(level)
}

/// Checks a level without using it.
fn check(level: &str) -> Result<(), String> {
    let word = level.chars().all(|c| c.is_ascii_alphanumeric());
    if word && !["off", "error", "warn", "info", "debug", "trace"].contains(&level) {
        return Err("error, warn, info, debug, trace, or directives like 'syncd=debug'".into());
    }
    filter(level).map(|_| ())
}

/// Starts logging. Later calls in one process (tests) change nothing.
pub fn init(format: Option<LogFormat>, level: &str) -> Result<Level, String> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let terminal = std::io::stderr().is_terminal();
    let text = match format {
        Some(format) => format == LogFormat::Text,
        None => terminal,
    };
    let registry = tracing_subscriber::registry().with(filter);
    let result = if text {
        let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(terminal);
        registry.with(layer.log_internal_errors(false)).try_init()
    } else {
        let layer = fmt::layer().json().flatten_event(true).with_current_span(false);
        let layer = layer.with_span_list(false).with_writer(std::io::stderr);
        registry.with(layer.log_internal_errors(false)).try_init()
    };
    // Somebody set up logging before us: theirs stays.
    drop(result);
    Ok(Level(handle))
}

impl Level {
    /// Sets the level that a flag names; a wrong one changes nothing.
    pub fn set(&self, flag: &str) -> Result<(), String> {
        let filter = filter(&resolve(flag)?)?;
        self.0.reload(filter).map_err(|error| error.to_string())
    }
}
