//! `keygen --stack`: all keys and tokens of a server and its clients, as containers want them.
//!
//! A directory each for the server, for every client and for whoever writes, so that each can be given its own and no
//! other: only the server's holds the publisher key. What exists is kept, so that it can run at every start; what is a
//! copy or a public half follows its original.

use super::{Failure, output::print_line};
use crate::{exit, keys};
use commonware_cryptography::ed25519::PrivateKey;
use rand::TryRng as _;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;

/// Makes what is missing below `root`.
pub(super) fn make(root: &Path, clients: u16) -> Result<(), Failure> {
    let server = directory(root, "server")?;
    let writer = directory(root, "writer")?;
    let clients: Vec<PathBuf> = (1..=clients)
        .map(|number| directory(root, &format!("client-{number}")))
        .collect::<Result<_, _>>()?;
    let copies =
        |name: &str| -> Vec<PathBuf> { clients.iter().map(|client| client.join(name)).collect() };

    let publisher = private_key(&server.join("publisher.key"), &copies("publisher.pub"))?;
    let identity = private_key(&server.join("identity.key"), &copies("server.pub"))?;
    let write_token = token(&server.join("api.token"), &[writer.join("api.token")])?;
    let read_token = token(&server.join("read.token"), &copies("read.token"))?;
    copy_token(&writer.join("api.token"), &write_token)?;
    copy_token(&writer.join("read.token"), &read_token)?;

    for (client, number) in clients.iter().zip(1..) {
        let key = client.join("identity.key");
        if !key.exists() {
            authorized_client(&server, number, &key)?;
        }
        keys::write_public_file(client, "publisher.pub", &keys::public_hex(&publisher))?;
        keys::write_public_file(client, "server.pub", &keys::public_hex(&identity))?;
        copy_token(&client.join("read.token"), &read_token)?;
    }
    print_line(format!(
        "keys of a server and {} clients in {}; publisher {}",
        clients.len(),
        root.display(),
        keys::public_hex(&publisher)
    ))
}

fn directory(root: &Path, name: &str) -> Result<PathBuf, Failure> {
    let path = root.join(name);
    fs::create_dir_all(&path)
        .map_err(|error| Failure::new(exit::IO, format!("{}: {error}", path.display())))?;
    Ok(path)
}

/// The original is gone but something that was made from it is not: a volume was lost. A new one in its place would be
/// refused by whoever holds the old half, far from here.
fn refuse_orphans(original: &Path, derived: &[PathBuf]) -> Result<(), Failure> {
    match derived.iter().find(|path| path.exists()) {
        Some(path) => Err(Failure::new(
            exit::DATA,
            format!(
                "{} is missing, but {} was made from it: restore it, or remove both to begin anew",
                original.display(),
                path.display()
            ),
        )),
        None => Ok(()),
    }
}

fn private_key(path: &Path, derived: &[PathBuf]) -> Result<PrivateKey, Failure> {
    if !path.exists() {
        refuse_orphans(path, derived)?;
    }
    Ok(keys::load_or_create_private(path)?)
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path)
        .map_err(|error| Failure::new(exit::IO, format!("{}: {error}", path.display())))
}

fn token(path: &Path, copies: &[PathBuf]) -> Result<String, Failure> {
    if !path.exists() {
        refuse_orphans(path, copies)?;
        let mut bytes = [0; TOKEN_BYTES];
        rand::rngs::SysRng
            .try_fill_bytes(&mut bytes)
            .map_err(|error| Failure::new(exit::INTERNAL, error.to_string()))?;
        keys::write_secret(path, &format!("{}\n", hex::encode(bytes)))?;
    }
    read(path)
}

/// Writes a copy of a token. One that was changed at the server is changed here too.
fn copy_token(path: &Path, token: &str) -> Result<(), Failure> {
    if path.exists() {
        if read(path)? == token {
            return Ok(());
        }
        fs::remove_file(path)?;
    }
    Ok(keys::write_secret(path, token)?)
}

/// Makes a client's key. It is listed before it exists: interrupted in between, it leaves a line too many, not a client
/// that is refused. A key that exists is not listed again: an operator may have removed it.
fn authorized_client(server: &Path, number: u16, path: &Path) -> Result<(), Failure> {
    let key = keys::generate();
    authorize(server, &format!("{} # client-{number}", keys::public_hex(&key)))?;
    Ok(keys::write_private(path, &key, false)?)
}

/// Adds a line to the server's list; what is there stays.
fn authorize(server: &Path, line: &str) -> Result<(), Failure> {
    const NAME: &str = "authorized_clients";
    let path = server.join(NAME);
    let listed = if path.exists() { read(&path)? } else { String::new() };
    keys::authorized_from_text(&path, &listed)?;
    Ok(keys::write_public_file(
        server,
        NAME,
        format!("{}\n{line}", listed.trim_end()).trim_start(),
    )?)
}
