//! `proof`, `verify`.

use super::{
    ApiArgs, Failure,
    http::{Api, key_path},
    output::{print_bytes, print_line},
};
use crate::{
    config, exit, keys,
    verify::{Error, Expect, FILE_BYTES_MAX, ProofFile, Trust},
};
use clap::Args;
use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Arguments of `proof`.
#[derive(Debug, Args)]
pub(super) struct ProofArgs {
    /// The key whose value, or absence, is to be proved
    #[arg(required_unless_present = "location")]
    key: Option<String>,
    /// Prove the operation at this location instead
    #[arg(long, env = "SYNCD_LOCATION", conflicts_with = "key")]
    location: Option<u64>,
    /// Wait until the state has so many operations
    #[arg(long, env = "SYNCD_MIN_SIZE", conflicts_with = "location")]
    min_size: Option<u64>,
    /// File for the proof [default: standard output]
    #[arg(short, long, env = "SYNCD_OUTPUT")]
    output: Option<PathBuf>,
    #[command(flatten)]
    api: ApiArgs,
}

/// Fetches a proof file. What it is worth, `verify` says.
pub(super) fn proof(args: &ProofArgs) -> Result<(), Failure> {
    let path = match (&args.key, args.location) {
        (Some(key), _) => {
            let wait = args.min_size.map(|size| format!("&min_size={size}")).unwrap_or_default();
            format!("{}?proof=true{wait}", key_path(key))
        }
        (None, location) => {
            format!("/v1/operations/{}?proof=true", location.unwrap_or_default())
        }
    };
    let answer = Api::new(&args.api)?.get(&path)?.success()?;
    let file = ProofFile::from_json(&answer.body)
        .map_err(|error| Failure::new(exit::DATA, format!("the answer is {error}")))?;
    match &args.output {
        None => print_bytes(&file.to_json())?,
        Some(path) => write(path, &file.to_json())
            .map_err(|error| Failure::new(exit::IO, format!("{}: {error}", path.display())))?,
    }
    Ok(())
}

/// Replaces a file as a whole.
fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut file = tempfile::NamedTempFile::new_in(parent.unwrap_or(Path::new(".")))?;
    file.write_all(content)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The proof file; - reads it from standard input
    file: PathBuf,
    /// Publisher key: hex, or a file with it; may be given several times
    #[arg(long = "trusted-key", env = "SYNCD_TRUSTED_KEY", required = true, value_delimiter = ',')]
    trusted_keys: Vec<String>,
    /// Identity of the database: hex, or a file with it
    #[arg(long, env = "SYNCD_DATABASE")]
    database: String,
    /// The key that the proof must speak of
    #[arg(long, env = "SYNCD_KEY")]
    key: Option<String>,
    /// The longest time since the state was signed (like 60s)
    #[arg(long, env = "SYNCD_MAX_AGE", value_parser = config::interval)]
    max_age: Option<Duration>,
    /// The fewest operations that the state must have
    #[arg(long, env = "SYNCD_MIN_SIZE")]
    min_size: Option<u64>,
}

/// Verifies a proof file, without a network and without storage.
pub(super) fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let publishers: Result<Vec<_>, _> =
        args.trusted_keys.iter().map(|key| keys::parse_public(key)).collect();
    let trust = Trust { publishers: publishers?, database: keys::parse_database(&args.database)? };
    let expect = Expect {
        key: args.key.as_ref().map(|key| key.clone().into_bytes()),
        min_size: args.min_size,
        max_age: args.max_age.map(|age| (age, SystemTime::now())),
    };
    let name = args.file.display();
    let text =
        read(&args.file).map_err(|error| Failure::new(exit::IO, format!("{name}: {error}")))?;
    let failed = |error: Error| Failure::new(exit::DATA, format!("{name}: {error}"));
    let proved = ProofFile::from_json(&text).map_err(failed)?;
    let proved = proved.verify(&trust, &expect).map_err(failed)?;
    print_line(format!("proved: {proved}"))
}

/// Reads a file, or standard input; no more than a proof file may have, and one byte.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let max = FILE_BYTES_MAX as u64 + 1;
    if path == Path::new("-") {
        std::io::stdin().take(max).read_to_end(&mut text)?;
    } else {
        std::fs::File::open(path)?.take(max).read_to_end(&mut text)?;
    }
    Ok(text)
}
