//! Key files: Ed25519 private and public keys as hex or PEM, lists of authorised clients.

use crate::database::types::DatabaseId;
use commonware_codec::{DecodeExt as _, Encode as _};
use commonware_cryptography::{
    Signer as _,
    ed25519::{PrivateKey, PublicKey},
};
use rand::TryRng as _;
use std::{
    collections::HashSet,
    fs, io,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// DER before the 32 key bytes of a PKCS#8 Ed25519 private key (RFC 8410).
const PRIVATE_DER: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// DER before the 32 key bytes of an Ed25519 public key (RFC 8410).
const PUBLIC_DER: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Largest key file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What is wrong with a key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds no private key.
    #[error("{}: not a private key: allowed are 64 hexadecimal digits or a PEM 'PRIVATE KEY' (PKCS#8, Ed25519)", .0.display())]
    Private(PathBuf),
    /// Neither a public key nor a file with one.
    #[error(
        "'{0}' is not a public key: allowed are 64 hexadecimal digits, or a file with them or with a PEM 'PUBLIC KEY' (Ed25519)"
    )]
    Public(String),
    /// Neither a database identity nor a file with one.
    #[error(
        "'{0}' is not a database identity: allowed are 64 hexadecimal digits, or a file with them"
    )]
    Database(String),
    /// A line of a list of keys.
    #[error("{}:{line}: '{text}' is not a public key: allowed are 64 hexadecimal digits, blank lines and comments that begin with '#'", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What it holds.
        text: String,
    },
}

impl Error {
    /// Whether there was no room to write it.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if crate::directory::is_full(source))
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { path, source }
}

/// A new key from the system's randomness.
pub fn generate() -> PrivateKey {
    loop {
        let mut bytes = [0; 32];
        rand::rngs::SysRng.try_fill_bytes(&mut bytes).expect("the system has randomness");
        if let Ok(key) = PrivateKey::decode(bytes::Bytes::copy_from_slice(&bytes)) {
            return key;
        }
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let size = fs::metadata(path).map_err(at(path))?.len();
    if size > FILE_BYTES_MAX {
        let error = io::Error::new(io::ErrorKind::FileTooLarge, "too large for a key file");
        return Err(at(path)(error));
    }
    fs::read_to_string(path).map_err(at(path))
}

/// The 32 bytes of `text`, which is hex or PEM with `tag` whose content begins with `prefix`.
fn parse_bytes(text: &str, tag: &str, prefix: &[u8]) -> Option<[u8; 32]> {
    let text = text.trim();
    let mut bytes = [0; 32];
    if hex::decode_to_slice(text, &mut bytes).is_ok() {
        return Some(bytes);
    }
    let block = pem::parse(text).ok().filter(|block| block.tag() == tag)?;
    block.contents().strip_prefix(prefix)?.try_into().ok()
}

/// Permissions that a private key's file should not have: any for others; for a file of root's, which its group may be
/// given to read (as volumes with `fsGroup` do), no writing by it.
const fn forbidden_mode(owner: u32) -> u32 {
    if owner == 0 { 0o037 } else { 0o077 }
}

/// Reads a private key; says on the log if others may read the file.
pub fn load_private(path: &Path) -> Result<PrivateKey, Error> {
    let text = read(path)?;
    let metadata = fs::metadata(path).map_err(at(path))?;
    let mode = metadata.permissions().mode();
    if mode & forbidden_mode(metadata.uid()) != 0 {
        tracing::warn!(path = %path.display(), mode = format!("{:o}", mode & 0o777), "others may read this private key");
    }
    private_from_text(path, &text)
}

/// The private key that the file `path` holds in `text`.
pub fn private_from_text(path: &Path, text: &str) -> Result<PrivateKey, Error> {
    let bad = || Error::Private(path.to_path_buf());
    let bytes = parse_bytes(text, "PRIVATE KEY", &PRIVATE_DER).ok_or_else(bad)?;
    PrivateKey::decode(bytes::Bytes::copy_from_slice(&bytes)).map_err(|_| bad())
}

/// Reads a private key, or makes one with mode 0600 where there is no file.
pub fn load_or_create_private(path: &Path) -> Result<PrivateKey, Error> {
    if path.exists() {
        return load_private(path);
    }
    let key = generate();
    write_private(path, &key, false)?;
    Ok(key)
}

/// Writes a private key with mode 0600; never over an existing file.
pub fn write_private(path: &Path, key: &PrivateKey, as_pem: bool) -> Result<(), Error> {
    let bytes = key.encode();
    let text = if as_pem {
        let contents = [PRIVATE_DER.as_slice(), &bytes].concat();
        pem::encode(&pem::Pem::new("PRIVATE KEY", contents))
    } else {
        format!("{}\n", hex::encode(&bytes))
    };
    write_secret(path, &text)
}

/// Writes `text` with mode 0600; never over an existing file.
pub fn write_secret(path: &Path, text: &str) -> Result<(), Error> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(parent)
        .map_err(at(path))?;
    file.write_all(text.as_bytes()).map_err(at(path))?;
    file.as_file().sync_all().map_err(at(path))?;
    file.persist_noclobber(path).map_err(|error| at(path)(error.error))?;
    sync_directory(parent).map_err(at(path))
}

/// Makes the entries of a directory durable.
fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// A public key as hex.
pub fn public_hex(key: &PrivateKey) -> String {
    hex::encode(key.public_key())
}

/// Reads a public key from `text`: hex, or the path of a file with hex or PEM.
pub fn parse_public(text: &str) -> Result<PublicKey, Error> {
    match public_from_text(text) {
        Err(_) if looks_like_path(text) => {
            let content = read(Path::new(text))?;
            public_from_text(&content).map_err(|_| Error::Public(text.to_string()))
        }
        result => result,
    }
}

/// The public key that `text` is, as hex or PEM.
pub fn public_from_text(text: &str) -> Result<PublicKey, Error> {
    let bad = || Error::Public(text.to_string());
    let bytes = parse_bytes(text, "PUBLIC KEY", &PUBLIC_DER).ok_or_else(bad)?;
    PublicKey::decode(bytes::Bytes::copy_from_slice(&bytes)).map_err(|_| bad())
}

/// Whether a text that is no key is meant as a file.
fn looks_like_path(text: &str) -> bool {
    text.contains(['/', '.']) || Path::new(text).exists()
}

/// Reads a database identity from `text`: hex, or the path of a file with hex.
pub fn parse_database(text: &str) -> Result<DatabaseId, Error> {
    let bad = |_| Error::Database(text.to_string());
    match text.parse() {
        Ok(database) => Ok(database),
        Err(_) if looks_like_path(text) => read(Path::new(text))?.parse().map_err(bad),
        Err(error) => Err(bad(error)),
    }
}

/// Writes one line to `directory/name` atomically, mode 0644 whatever the umask.
pub fn write_public_file(directory: &Path, name: &str, line: &str) -> Result<(), Error> {
    crate::directory::make_public(directory).map_err(at(directory))?;
    let path = directory.join(name);
    let mode = fs::Permissions::from_mode(0o644);
    if fs::read_to_string(&path).is_ok_and(|found| found.strip_suffix('\n') == Some(line)) {
        return fs::set_permissions(&path, mode).map_err(at(&path));
    }
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(at(&path))?;
    writeln!(file, "{line}").map_err(at(&path))?;
    file.as_file().set_permissions(mode).map_err(at(&path))?;
    file.as_file().sync_all().map_err(at(&path))?;
    file.persist(&path).map_err(|error| at(&path)(error.error))?;
    Ok(())
}

/// Reads a list of public keys, one a line, with `#` comments.
pub fn load_authorized(path: &Path) -> Result<HashSet<PublicKey>, Error> {
    authorized_from_text(path, &read(path)?)
}

/// The list of public keys that the file `path` holds in `text`.
pub fn authorized_from_text(path: &Path, text: &str) -> Result<HashSet<PublicKey>, Error> {
    let mut keys = HashSet::new();
    for (index, line) in text.lines().enumerate() {
        let text = line.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        let bad = || Error::Line { path: path.into(), line: index + 1, text: text.into() };
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| bad())?;
        keys.insert(PublicKey::decode(bytes::Bytes::copy_from_slice(&bytes)).map_err(|_| bad())?);
    }
    Ok(keys)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn private_keys_round_trip_as_hex_and_pem() {
        let directory = tempfile::tempdir().unwrap();
        for as_pem in [false, true] {
            let path = directory.path().join(format!("key-{as_pem}"));
            let key = generate();
            write_private(&path, &key, as_pem).unwrap();
            assert_eq!(load_private(&path).unwrap().public_key(), key.public_key());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert!(write_private(&path, &generate(), as_pem).is_err(), "must not overwrite");
        }
    }

    #[test]
    fn public_keys_are_read_from_hex_and_file() {
        let directory = tempfile::tempdir().unwrap();
        let key = generate();
        let text = public_hex(&key);
        write_public_file(directory.path(), "a.pub", &text).unwrap();
        let path = directory.path().join("a.pub");
        for source in [text.as_str(), path.to_str().unwrap()] {
            assert_eq!(parse_public(source).unwrap(), key.public_key());
        }
        for wrong in ["", "zz", &text[1..], "./absent.pub"] {
            assert!(parse_public(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_line_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clients");
        fs::write(&path, format!("# ours\n{} # one\n\nnonsense\n", public_hex(&generate())))
            .unwrap();
        let error = load_authorized(&path).unwrap_err().to_string();
        assert!(error.contains(":4: 'nonsense'"), "{error}");
    }
}
