//! `keygen`, `new-epoch`.

use super::Failure;
use crate::{config::default_storage_dir, exit, keys};
use clap::{Args, builder::BoolishValueParser};
use std::path::PathBuf;

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
    let key = keys::generate();
    keys::write_private(&args.output, &key, args.pem)?;
    let public = keys::public_hex(&key);
    if let Some(path) = &args.public {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
            Failure::new(
                exit::USAGE,
                format!("invalid value '{}' for --public: a file", path.display()),
            )
        })?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        keys::write_public_file(parent.unwrap_or(".".as_ref()), name, &public)?;
    }
    println!("{public}");
    Ok(())
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
    println!("{id}");
    eprintln!(
        "clients refuse the new identity until an operator stops them and removes their storage directory"
    );
    Ok(())
}
