//! `keygen`, `new-epoch`.

use super::{Failure, output::print_line};
use crate::{
    config::{default_storage_dir, invalid},
    keys,
};
use clap::{Args, builder::BoolishValueParser};
use std::path::{Path, PathBuf};

/// Arguments of `keygen`.
#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// File for the private key; must not exist
    #[arg(short, long, env = "SYNCD_OUTPUT", default_value = "identity.key")]
    output: PathBuf,
    /// Write PEM (PKCS#8) instead of hex
    #[arg(long, env = "SYNCD_PEM", value_parser = BoolishValueParser::new())]
    pem: bool,
    /// Also write the public half to this file
    #[arg(long, env = "SYNCD_PUBLIC")]
    public: Option<PathBuf>,
}

/// Makes a key.
pub fn keygen(args: &KeygenArgs) -> Result<(), Failure> {
    // Checked before a file is made.
    let public_file = args.public.as_deref().map(directory_and_name).transpose()?;
    let key = keys::generate();
    keys::write_private(&args.output, &key, args.pem)?;
    let public = keys::public_hex(&key);
    if let Some((directory, name)) = public_file {
        keys::write_public_file(directory, name, &public)?;
    }
    print_line(public)
}

fn directory_and_name(path: &Path) -> Result<(&Path, &str), Failure> {
    let name = path.file_name().and_then(|name| name.to_str()).filter(|_| !path.is_dir());
    let name = name.ok_or_else(|| invalid("--public", path.display(), "a file"))?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok((directory.unwrap_or(".".as_ref()), name))
}

/// Arguments of `new-epoch`.
#[derive(Debug, Args)]
pub struct NewEpochArgs {
    /// Storage directory of the stopped server [default: $XDG_STATE_HOME/syncd/server]
    #[arg(short = 'd', long, env = "SYNCD_STORAGE_DIR")]
    storage_dir: Option<PathBuf>,
    /// Private key that signs checkpoints [default: in the storage directory]
    #[arg(long, env = "SYNCD_PUBLISHER_KEY")]
    publisher_key: Option<PathBuf>,
}

/// Begins a new epoch.
pub fn new_epoch(args: &NewEpochArgs) -> Result<(), Failure> {
    let directory = match &args.storage_dir {
        Some(directory) => directory.clone(),
        None => default_storage_dir("server")?,
    };
    let id = crate::server::new_epoch(&directory, args.publisher_key.as_deref())?;
    print_line(id)?;
    eprintln!(
        "clients refuse the new identity until an operator stops them and removes their storage directory"
    );
    Ok(())
}
