//! The log: one JSON object a line on stderr, or text for people.

use super::json::Json;
use crate::stdio::queue;
use clap::ValueEnum;
use std::io::IsTerminal as _;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt as _, FilterFn, filter_fn},
    fmt::{self, writer::BoxMakeWriter},
    reload,
};

/// Libraries whose own words about the export of traces would repeat [`super::traces`]' one warning.
const EXPORTERS_OFF: &str = "opentelemetry=off,opentelemetry_sdk=off,opentelemetry-otlp=off,\
                             opentelemetry-http=off,tonic=off,h2=off,reqwest=off,hyper_util=off,tower=off";

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Changes the level while the program runs.
#[derive(Clone)]
pub struct Level(reload::Handle<EnvFilter, Registry>);

/// A level like `info` for this program, with the libraries quieter; or directives as they are.
fn filter(level: &str) -> Result<EnvFilter, String> {
    let simple = ["off", "error", "warn", "info", "debug", "trace"].contains(&level);
    let directives = if simple {
        let library = if level == "off" || level == "error" { "error" } else { "warn" };
        format!("{library},syncd={level},{EXPORTERS_OFF}")
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

/// The log as a layer, and the handle of its level.
pub(super) fn layer(
    format: Option<LogFormat>,
    level: &str,
) -> Result<(impl Layer<Registry>, Level), String> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let terminal = std::io::stderr().is_terminal();
    let text = format.map_or(terminal, |format| format == LogFormat::Text);
    // Without a thread for its queue, the log is written directly.
    let writer = match queue::started() {
        Some(queue) => BoxMakeWriter::new(queue.clone()),
        None => BoxMakeWriter::new(std::io::stderr),
    };
    let layer = fmt::layer().with_writer(writer).log_internal_errors(false);
    let layer =
        if text { layer.with_ansi(terminal).boxed() } else { layer.event_format(Json).boxed() };
    // Spans are for traces: the log needs none, and where there are no traces they cost nothing.
    Ok((layer.with_filter(filter.and(filter_fn(|metadata| metadata.is_event()))), Level(handle)))
}

/// The spans of this program, whatever the log's level.
pub(super) fn own_spans() -> FilterFn {
    filter_fn(|metadata| {
        let target = metadata.target();
        let of_crate = target.split_once("::").map_or(target, |(of_crate, _)| of_crate);
        let is_ours = of_crate == "syncd" || of_crate.starts_with("syncd_");
        metadata.is_span() && is_ours && *metadata.level() <= tracing::Level::INFO
    })
}

impl Level {
    /// Sets the level that a flag names; a wrong one changes nothing.
    pub fn set(&self, flag: &str) -> Result<(), String> {
        let filter = filter(&resolve(flag)?)?;
        self.0.reload(filter).map_err(|error| error.to_string())
    }
}
