//! `export`.

use super::{ApiArgs, Failure, http::Api, import::bar};
use crate::exit;
use clap::Args;
use std::{
    io::{BufRead as _, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// File to write; - is standard output
    #[arg(short, long, env = "SYNCD_OUTPUT", default_value = "-")]
    output: PathBuf,
    #[command(flatten)]
    api: ApiArgs,
}

/// Writes one consistent state as NDJSON.
pub fn run(args: &ExportArgs) -> Result<(), Failure> {
    let api = Api::new(&args.api)?;
    let mut response = api.stream("/v1/export")?;
    if !response.status().is_success() {
        let path = "/v1/export";
        return Err(api.get(path)?.success().err().unwrap_or_else(|| {
            Failure::new(exit::TEMPORARY, "the export was refused; try again")
        }));
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
    let records = if args.output.as_os_str() == "-" {
        copy_lines(&mut response, std::io::stdout().lock())?
    } else {
        to_file(&mut response, &args.output)?
    };
    eprintln!("{records} records of the state at {size} operations, root {root}");
    Ok(())
}

/// Writes a file that takes its name once it is complete: an older one of that name stays until
/// then.
fn to_file(response: &mut ureq::http::Response<ureq::Body>, path: &Path) -> Result<u64, Failure> {
    let failed =
        |error: std::io::Error| Failure::new(exit::IO, format!("{}: {error}", path.display()));
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(parent.unwrap_or(Path::new(".")))
        .map_err(failed)?;
    let records = copy_lines(response, file.as_file_mut())?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(records)
}

/// Copies whole lines; a body that was cut is an error.
fn copy_lines(
    response: &mut ureq::http::Response<ureq::Body>,
    output: impl Write,
) -> Result<u64, Failure> {
    let mut input = BufReader::with_capacity(1 << 20, response.body_mut().as_reader());
    let mut output = BufWriter::with_capacity(1 << 20, output);
    let progress = bar(None, "exported");
    let mut line = Vec::new();
    let mut records = 0;
    loop {
        line.clear();
        let read = input.read_until(b'\n', &mut line).map_err(|error| {
            Failure::new(
                exit::TEMPORARY,
                format!("the export is incomplete after {records} records: {error}"),
            )
        })?;
        if read == 0 {
            break;
        }
        output.write_all(&line)?;
        records += 1;
        progress.inc(1);
    }
    output.flush()?;
    progress.finish_and_clear();
    Ok(records)
}
