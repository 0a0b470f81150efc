//! What a storage directory says of itself: `layout.json`, for people and for programs of other versions.

use serde::{Deserialize, Serialize};
use std::{
    fmt, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// The file's name.
const FILE: &str = "layout.json";
/// Version of what lies in `data/`: partitions, their records, and how those are encoded.
pub const LAYOUT_VERSION: u8 = syncd_proto::checkpoint::LAYOUT_VERSION;

/// Which daemon it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// `syncd-server`.
    #[default]
    Server,
    /// `syncd-client`.
    Client,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Client => "client",
        })
    }
}

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Who the directory belongs to.
    pub role: Role,
    /// Its version.
    pub layout: u8,
    /// The program that made it.
    pub made_by: String,
}

/// Why a directory is not this program's to open. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The data were written by another version.
    #[error(
        "{} has layout {found} (made by {made_by}); this program has layout {LAYOUT_VERSION}. To bring its records over, export them with that version ('syncctl export') and import them into an empty directory ('syncctl import'); a replica needs only an empty directory",
        path.display()
    )]
    Version {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: u8,
        /// Who made it.
        made_by: String,
    },
    /// It belongs to another role.
    #[error("{} is the storage directory of a {found}; a {wanted} needs one of its own", path.display())]
    Role {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: Role,
        /// Who wants it.
        wanted: Role,
    },
    /// There are data, and nothing says what they are.
    #[error(
        "{} holds data but no {FILE}: the file was lost, or a version before 0.1.0 made the directory. Restore the file with the rest of the directory from a backup; or export the records with the program that wrote them, and import them into an empty directory",
        path.display()
    )]
    Unmarked {
        /// The directory.
        path: PathBuf,
    },
    /// The file says nothing that this program understands.
    #[error("{}: {reason}; restore it with the rest of the directory from a backup", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file system.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl LayoutError {
    /// Whether the disk is the reason, rather than what is on it.
    pub const fn is_io(&self) -> bool {
        matches!(self, Self::Io { .. })
    }
}

/// Opens the directory at `path`, which is locked, for `role`: an empty one is marked, another one must be the role's and
/// have this program's layout.
pub fn claim(path: &Path, role: Role) -> Result<(), LayoutError> {
    let Some(found) = read(path)? else {
        if super::has_data(path) {
            return Err(LayoutError::Unmarked { path: path.to_path_buf() });
        }
        let made_by = format!("syncd {}", crate::VERSION);
        return write(path, &Layout { role, layout: LAYOUT_VERSION, made_by })
            .map_err(|source| LayoutError::Io { path: path.join(FILE), source });
    };
    let path = path.to_path_buf();
    if found.layout != LAYOUT_VERSION {
        return Err(LayoutError::Version { path, found: found.layout, made_by: found.made_by });
    }
    if found.role != role {
        return Err(LayoutError::Role { path, found: found.role, wanted: role });
    }
    Ok(())
}

/// What the directory says; `None` if nothing.
fn read(path: &Path) -> Result<Option<Layout>, LayoutError> {
    let file = path.join(FILE);
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LayoutError::Io { path: file, source }),
    };
    // A later version may say more.
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| LayoutError::Unreadable { path: file, reason: error.to_string() })
}

/// Durable on return, and there as a whole or not at all.
fn write(path: &Path, layout: &Layout) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(path)?;
    serde_json::to_writer_pretty(&mut file, layout)?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    file.persist(path.join(FILE)).map_err(|error| error.error)?;
    fs::File::open(path)?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn says(path: &Path, text: &str) {
        fs::write(path.join(FILE), text).unwrap();
    }

    #[test]
    fn an_empty_directory_is_marked_and_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        claim(path, Role::Server).unwrap();
        fs::create_dir_all(path.join("data/partition")).unwrap();
        claim(path, Role::Server).unwrap();
        let text = fs::read_to_string(path.join(FILE)).unwrap();
        assert!(text.contains("\"role\": \"server\"") && text.ends_with("}\n"), "{text}");
        let error = claim(path, Role::Client).unwrap_err();
        assert!(matches!(&error, LayoutError::Role { found: Role::Server, .. }), "{error}");
    }

    #[test]
    fn another_layout_is_refused_by_name_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::create_dir_all(path.join("data/partition")).unwrap();
        assert!(matches!(claim(path, Role::Client), Err(LayoutError::Unmarked { .. })));
        let later = r#"{"role":"client","layout":200,"made_by":"syncd 9.1.0","more":[]}"#;
        says(path, later);
        let error = claim(path, Role::Client).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("layout 200") && text.contains("syncd 9.1.0"), "{text}");
        assert!(text.contains("syncctl export"), "{text}");
        for broken in ["", "{}", "nonsense", r#"{"role":"king","layout":2,"made_by":""}"#] {
            says(path, broken);
            let error = claim(path, Role::Client).unwrap_err();
            assert!(matches!(&error, LayoutError::Unreadable { .. }), "{broken}: {error}");
            assert_eq!(fs::read_to_string(path.join(FILE)).unwrap(), broken);
        }
    }
}
