//! `export`: all or nothing. A file gets its name once the whole export is in it.

use super::{ApiArgs, Failure, http::Api, lines, output, progress::Progress};
use crate::{exit, stdio};
use clap::Args;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use std::{
    fs::{File, Permissions},
    io::{BufRead, BufReader, BufWriter, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// Arguments of `export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// File to write, replaced when the export is complete; - is standard output
    #[arg(short, long, env = "SYNCD_OUTPUT", default_value = "-")]
    output: PathBuf,
    #[command(flatten)]
    api: ApiArgs,
}

/// Writes one consistent state as NDJSON.
pub(super) fn run(args: &ExportArgs) -> Result<(), Failure> {
    let api = Api::new(&args.api)?;
    let mut output = Output::open(&args.output)?;
    let mut response = api.stream("/v1/export")?;
    if !response.status().is_success() {
        return Err(api.read(response)?.failure());
    }
    let header = |name: &str| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("-")
            .to_string()
    };
    let (size, root) = (header("syncd-size"), header("syncd-root"));
    let input = BufReader::with_capacity(1 << 20, response.body_mut().as_reader());
    let records = copy_lines(input, &mut output.writer(), &args.output)?;
    output.complete()?;
    stdio::note(format_args!("{records} records of the state at {size} operations, root {root}"));
    Ok(())
}

/// Where an export goes.
enum Output {
    /// What cannot be replaced: standard output, a pipe, a device.
    Stream(Box<dyn Write>),
    /// A file beside the one that it replaces at the end.
    File { temporary: NamedTempFile, path: PathBuf },
}

impl Output {
    fn open(path: &Path) -> Result<Self, Failure> {
        if path.as_os_str() == "-" {
            return Ok(Self::Stream(Box::new(std::io::stdout().lock())));
        }
        let failed = failed(path);
        match path.metadata() {
            // A directory is refused by `create`.
            Ok(metadata) if !metadata.is_file() => {
                Ok(Self::Stream(Box::new(File::create(path).map_err(failed)?)))
            }
            Ok(metadata) => {
                // What a symbolic link leads to is replaced, not the link.
                let path = path.canonicalize().map_err(&failed)?;
                let temporary = temporary_beside(&path, 0o600).map_err(&failed)?;
                let permissions = metadata.permissions();
                temporary.as_file().set_permissions(permissions).map_err(failed)?;
                Ok(Self::File { temporary, path })
            }
            Err(_) => {
                let temporary = temporary_beside(path, 0o666).map_err(failed)?;
                Ok(Self::File { temporary, path: path.into() })
            }
        }
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Stream(stream) => stream,
            Self::File { temporary, .. } => temporary,
        }
    }

    /// Gives the file its name.
    fn complete(self) -> Result<(), Failure> {
        let Self::File { temporary, path } = self else { return Ok(()) };
        temporary.as_file().sync_all().map_err(failed(&path))?;
        temporary.persist(&path).map_err(|error| failed(&path)(error.error))?;
        Ok(())
    }
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Failure {
    let path = (path.as_os_str() != "-").then(|| path.display().to_string());
    move |error| match &path {
        Some(path) => Failure::new(exit::IO, format!("{path}: {error}")),
        None => output::failure(&error),
    }
}

/// A temporary file in the directory of `path`, with `mode` as far as the umask allows. It does
/// not outlive this process, also where a signal ends it.
fn temporary_beside(path: &Path, mode: u32) -> std::io::Result<NamedTempFile> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let temporary = tempfile::Builder::new()
        .prefix(".syncctl-export-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory.unwrap_or(".".as_ref()))?;
    let (path, name) = (path.display().to_string(), temporary.path().to_path_buf());
    // The copying may be waiting for the network, so that it cannot look at a flag.
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let _ = std::fs::remove_file(&name);
            stdio::note(format_args!("syncctl: the export was interrupted; {path} is as it was"));
            std::process::exit(128 + signal);
        }
    });
    Ok(temporary)
}

/// Copies whole lines.
fn copy_lines(input: impl BufRead, output: &mut dyn Write, path: &Path) -> Result<u64, Failure> {
    let mut output = BufWriter::with_capacity(1 << 20, output);
    let progress = Progress::new(None, "exported");
    let records = read_lines(input, |line| {
        output.write_all(line).map_err(failed(path))?;
        progress.add(1);
        Ok(())
    })?;
    output.flush().map_err(failed(path))?;
    progress.finish();
    Ok(records)
}

/// Hands each line of an export's body to `take` and counts them. A body that was cut is an error.
pub(super) fn read_lines(
    mut input: impl BufRead,
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let mut line = Vec::new();
    let mut records = 0;
    let incomplete = |records: u64, reason: String| {
        let text = format!("the export is incomplete after {records} records: {reason}");
        Failure::new(exit::TEMPORARY, text)
    };
    loop {
        let read = lines::read_line(&mut input, &mut line);
        if !read.map_err(|error| incomplete(records, error.to_string()))? {
            return Ok(records);
        }
        if line.last() != Some(&b'\n') {
            return Err(incomplete(records, "its last line was cut".into()));
        }
        take(&line)?;
        records += 1;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_line_is_an_error() {
        let mut output = Vec::new();
        let path = Path::new("-");
        assert_eq!(copy_lines(&b"{}\n{}\n"[..], &mut output, path).unwrap(), 2);
        assert_eq!(output, b"{}\n{}\n");
        let failure = copy_lines(&b"{}\n{\"key"[..], &mut output, path).unwrap_err();
        assert_eq!(failure.code, exit::TEMPORARY);
        assert!(failure.message.contains("after 1 records"), "{failure}");
    }
}
