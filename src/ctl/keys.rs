//! Keys and identities: `keygen`, `rotate-key`, `new-epoch`, `adopt-database`,
//! `verify-evidence`.

use super::{Failure, output::print_line, stack};
use crate::{
    config::{default_storage_dir, invalid},
    exit, keys,
    server::Discarded,
    stdio,
    verify::{Evidence, Unproved},
};
use clap::{Args, builder::BoolishValueParser};
use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

/// Arguments of `keygen`.
#[derive(Debug, Args)]
pub(super) struct KeygenArgs {
    /// File for the private key; must not exist
    #[arg(short, long, env = "SYNCD_OUTPUT", default_value = "identity.key")]
    output: PathBuf,
    /// Write PEM (PKCS#8) instead of hex
    #[arg(long, env = "SYNCD_PEM", value_parser = BoolishValueParser::new())]
    pem: bool,
    /// Also write the public half to this file
    #[arg(long, env = "SYNCD_PUBLIC")]
    public: Option<PathBuf>,
    /// Instead, make what is missing of a whole stack's keys and tokens below this directory
    #[arg(long, env = "SYNCD_STACK", conflicts_with_all = ["output", "pem", "public"])]
    stack: Option<PathBuf>,
    /// Clients of the stack
    #[arg(long, env = "SYNCD_CLIENTS", default_value_t = 2)]
    clients: u16,
}

/// Makes a key, or a stack's.
pub(super) fn keygen(args: &KeygenArgs) -> Result<(), Failure> {
    if let Some(directory) = &args.stack {
        return stack::make(directory, args.clients);
    }
    // Checked before a file is made.
    let public_file = args.public.as_deref().map(directory_and_name).transpose()?;
    let key = keys::generate();
    keys::write_private(&args.output, &key, args.pem)?;
    let public = keys::public_hex(&key);
    if let Some((directory, name)) = public_file {
        std::fs::create_dir_all(directory)?;
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
pub(super) struct NewEpochArgs {
    /// Storage directory of the stopped server [default: $XDG_STATE_HOME/syncd/server]
    #[arg(short = 'd', long, env = "SYNCD_STORAGE_DIR")]
    storage_dir: Option<PathBuf>,
    /// Private key that signs checkpoints [default: in the storage directory]
    #[arg(long, env = "SYNCD_PUBLISHER_KEY")]
    publisher_key: Option<PathBuf>,
    /// Go on with the database as it is where the commit log cannot be read to its end, and say which acknowledged
    /// commits are lost by that
    #[arg(long, env = "SYNCD_DISCARD_UNREADABLE", value_parser = BoolishValueParser::new())]
    discard_unreadable: bool,
}

/// Says what `--discard-unreadable` gave up.
fn say_discarded(discarded: &Discarded) {
    let Discarded { kept, found, is_exact, idempotency_keys } = *discarded;
    stdio::note(match found {
        Some(found) if is_exact && found <= kept => {
            format!("no commit is lost: the database has all that the log has, up to {kept}")
        }
        Some(found) if is_exact => format!(
            "LOST: {} acknowledged commits, sequences {} to {found}",
            found - kept,
            kept + 1
        ),
        Some(found) if found > kept => format!(
            "LOST: at least {} acknowledged commits, sequences {} to {found}, and what the unreadable rest of the log held",
            found - kept,
            kept + 1
        ),
        _ => format!(
            "LOST: every acknowledged commit after {kept}; how many there were cannot be read from the log"
        ),
    });
    stdio::note(format_args!(
        "LOST: {idempotency_keys} idempotency keys that were read, and any that were not: a write that is tried again is written again"
    ));
}

/// Begins a new epoch.
pub(super) fn new_epoch(args: &NewEpochArgs) -> Result<(), Failure> {
    let directory = match &args.storage_dir {
        Some(directory) => directory.clone(),
        None => default_storage_dir("server")?,
    };
    let (key, discard) = (args.publisher_key.as_deref(), args.discard_unreadable);
    let epoch = crate::server::new_epoch(&directory, key, discard, say_discarded)?;
    let id = epoch.database;
    print_line(id)?;
    stdio::note(format_args!(
        "clients refuse the new identity until an operator runs 'syncctl adopt-database {id}' on each"
    ));
    Ok(())
}

/// Arguments of `rotate-key`.
#[derive(Debug, Args)]
pub(super) struct RotateKeyArgs {
    /// Storage directory of the stopped server [default: $XDG_STATE_HOME/syncd/server]
    #[arg(short = 'd', long, env = "SYNCD_STORAGE_DIR")]
    storage_dir: Option<PathBuf>,
    /// Private key to retire [default: in the storage directory]
    #[arg(long, env = "SYNCD_PUBLISHER_KEY")]
    publisher_key: Option<PathBuf>,
    /// Private key that takes over [default: made in the storage directory]
    #[arg(long, env = "SYNCD_NEW_KEY")]
    new_key: Option<PathBuf>,
}

/// Lets a new publisher key take over.
pub(super) fn rotate_key(args: &RotateKeyArgs) -> Result<(), Failure> {
    let directory = match &args.storage_dir {
        Some(directory) => directory.clone(),
        None => default_storage_dir("server")?,
    };
    let (old, new) = (args.publisher_key.as_deref(), args.new_key.as_deref());
    let rotated = crate::server::rotate_key(&directory, old, new)?;
    print_line(hex::encode(&rotated.successor))?;
    stdio::note(format_args!(
        "signs from commit {} on; replicas follow when they connect",
        rotated.from
    ));
    match &rotated.kept {
        Some(path) => stdio::note(format_args!("the retired key is kept in {}", path.display())),
        None => stdio::note("start the server with the new key as --publisher-key"),
    }
    rotated.finish()
}

/// Arguments of `adopt-database`.
#[derive(Debug, Args)]
pub(super) struct AdoptDatabaseArgs {
    /// The new identity: hex, or a file with it
    database: String,
    /// Storage directory of the stopped client [default: $XDG_STATE_HOME/syncd/client]
    #[arg(short = 'd', long, env = "SYNCD_STORAGE_DIR")]
    storage_dir: Option<PathBuf>,
}

/// Pins a client to another database.
pub(super) fn adopt_database(args: &AdoptDatabaseArgs) -> Result<(), Failure> {
    let directory = match &args.storage_dir {
        Some(directory) => directory.clone(),
        None => default_storage_dir("client")?,
    };
    let database = keys::parse_database(&args.database)?;
    let before = crate::client::adopt_database(&directory, database)?;
    if before == database {
        print_line(format!("{database} was pinned already"))
    } else {
        print_line(format!("pinned to {database}; was {before}, whose replica is removed"))
    }
}

/// Arguments of `verify-evidence`.
#[derive(Debug, Args)]
pub(super) struct VerifyEvidenceArgs {
    /// File that a client wrote
    file: PathBuf,
    /// Publisher key: hex, or a file with it; may be given several times
    #[arg(long = "trusted-key", env = "SYNCD_TRUSTED_KEY", required = true, value_delimiter = ',')]
    trusted_keys: Vec<String>,
}

/// Largest file of evidence that is read.
const EVIDENCE_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Says whether a file proves that the publisher signed two histories.
pub(super) fn verify_evidence(args: &VerifyEvidenceArgs) -> Result<(), Failure> {
    let trusted: Result<Vec<_>, _> =
        args.trusted_keys.iter().map(|key| keys::parse_public(key)).collect();
    let unreadable =
        |error: std::io::Error| Failure::new(exit::IO, format!("{}: {error}", args.file.display()));
    let mut text = Vec::new();
    let file = std::fs::File::open(&args.file).map_err(unreadable)?;
    file.take(EVIDENCE_BYTES_MAX + 1).read_to_end(&mut text).map_err(unreadable)?;
    if text.len() as u64 > EVIDENCE_BYTES_MAX {
        let text = format!("{}: larger than {EVIDENCE_BYTES_MAX} bytes", args.file.display());
        return Err(Failure::new(exit::DATA, text));
    }
    let not_proved =
        |error: Unproved| Failure::new(exit::DATA, format!("{}: {error}", args.file.display()));
    let evidence = Evidence::from_json(&text).map_err(not_proved)?;
    let what = evidence.verify(trusted?).map_err(not_proved)?;
    print_line(format!("proved: {what}"))
}
