//! The storage directory as the file system sees it: who may look into it, and whether it is still where it was.

mod layout;
mod lock;

pub use layout::{LAYOUT_VERSION, Layout, LayoutError, Role, claim};
pub use lock::{DirectoryError, DirectoryLock, is_full, is_locked};

use crate::runtime::{Guard, StorageGuard, StorageRoom};
use rustix::fs::{Mode, StatVfsMountFlags};
use std::{
    fs::{self, DirBuilder, File, Metadata, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The directory that everybody may read.
const PUBLIC: &str = "public";
/// Mode of a new storage directory: others may pass through it, to what is public.
const DIRECTORY_MODE: u32 = 0o711;
/// Mode of a new directory inside it.
const INNER_MODE: u32 = 0o700;
/// Mode of the public directory.
const PUBLIC_MODE: u32 = 0o755;
/// The bit by which a volume gives what is made in it to its group (`fsGroup`).
const SET_GROUP: u32 = 0o2000;

/// Makes the directory if need be, and closes everything in it but `public/` to other users, whatever the umask and
/// whatever was there before. Modes are only tightened. Gives the umask that closes what is made in it from here on, for
/// a process that does nothing else.
///
/// A directory with the set-group-ID bit is a volume that was given to a group on purpose: there the group keeps what it
/// has.
pub fn prepare(path: &Path) -> io::Result<Mode> {
    if !path.exists() {
        DirBuilder::new().recursive(true).mode(PUBLIC_MODE).create(path)?;
        fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE))?;
    }
    let metadata = fs::metadata(path)?;
    let is_shared = metadata.mode() & SET_GROUP != 0;
    let closed = if is_shared { 0o007 } else { 0o077 };
    tighten(path, &metadata, if is_shared { 0o006 } else { 0o066 })?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if metadata.is_symlink() {
            continue;
        }
        if entry.file_name() == PUBLIC {
            tighten(&entry.path(), &metadata, 0o022)?;
            continue;
        }
        // A file of root's may be readable by its group: it may have been put there for this process.
        let is_roots = metadata.uid() == 0 && metadata.is_file() && !is_ours(&metadata);
        tighten(&entry.path(), &metadata, if is_roots { 0o037 & closed } else { closed })?;
    }
    Ok(Mode::from_raw_mode(closed))
}

fn is_ours(metadata: &Metadata) -> bool {
    rustix::process::geteuid().as_raw() == metadata.uid()
}

/// Takes the permissions `forbidden` away.
fn tighten(path: &Path, metadata: &Metadata, forbidden: u32) -> io::Result<()> {
    let before = metadata.mode() & 0o7777;
    let after = before & !forbidden;
    if before == after {
        return Ok(());
    }
    let (from, to) = (format!("{before:o}"), format!("{after:o}"));
    match fs::set_permissions(path, Permissions::from_mode(after)) {
        Ok(()) => {
            tracing::info!(path = %path.display(), from, to, "closed to other users");
            Ok(())
        }
        // The root of a volume that was given to our group is not ours.
        Err(error)
            if error.kind() == io::ErrorKind::PermissionDenied && before & SET_GROUP != 0 =>
        {
            tracing::info!(path = %path.display(), mode = from, "the mode of this volume is its owner's");
            Ok(())
        }
        // Another owner's; or a file system without modes.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::ReadOnlyFilesystem
                    | io::ErrorKind::Unsupported
            ) =>
        {
            tracing::warn!(path = %path.display(), from, to, %error, "other users may look into this: its mode cannot be changed");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Where the library keeps its partitions.
pub fn data_dir(storage_dir: &Path) -> PathBuf {
    storage_dir.join("data")
}

/// Whether there are partitions.
pub fn has_data(storage_dir: &Path) -> bool {
    let is_partition = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
    };
    fs::read_dir(data_dir(storage_dir)).is_ok_and(|mut entries| entries.any(is_partition))
}

/// Makes the directory that everybody may read.
pub fn make_public(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(PUBLIC_MODE).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(PUBLIC_MODE)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a directory inside the storage directory, which must exist.
pub fn make_inner(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(INNER_MODE).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// A directory that is held open, and the path by which it was found.
struct Held {
    path: PathBuf,
    handle: File,
}

impl Held {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_path_buf(), handle: File::open(path)? })
    }

    /// Whether the path still leads to the directory.
    fn check(&self) -> Result<(), String> {
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let held = self.handle.metadata().map(identity).map_err(|error| error.to_string())?;
        match fs::metadata(&self.path).map(identity) {
            Ok(found) if found == held => Ok(()),
            Ok(_) => Err("another one is in its place".into()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Watches directories that should stay where they are.
#[derive(Clone)]
struct Watch {
    data: PathBuf,
    held: Vec<Arc<Held>>,
}

impl Guard for Watch {
    fn check(&self) -> Result<(), String> {
        for held in &self.held {
            held.check().map_err(|reason| {
                format!(
                    "the storage directory {} was moved or removed while it is in use: {reason}",
                    held.path.display()
                )
            })?;
        }
        Ok(())
    }

    fn with(&self, partitions: &[String]) -> StorageGuard {
        let mut watch = self.clone();
        let partitions = partitions.iter().map(|name| self.data.join(name));
        watch.held.extend(partitions.filter_map(|path| Held::open(&path).ok()).map(Arc::new));
        Arc::new(watch)
    }
}

/// Watches whether `path` and the directory `data` in it, which is made if need be, stay where they are.
pub fn guard(path: &Path, data: &Path) -> io::Result<StorageGuard> {
    make_inner(data)?;
    let held = [path, data].map(Held::open).into_iter().map(|held| held.map(Arc::new));
    Ok(Arc::new(Watch { data: data.to_path_buf(), held: held.collect::<io::Result<_>>()? }))
}

/// Looks for room in the file system of `path`.
pub fn room(path: &Path) -> StorageRoom {
    let path = path.to_path_buf();
    Arc::new(move |bytes| {
        let found = rustix::fs::statvfs(&path).map_err(|error| {
            format!("the file system of {} cannot be looked at: {error}", path.display())
        })?;
        if found.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(format!("the file system of {} is read-only", path.display()));
        }
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        if free < bytes {
            return Err(format!(
                "the file system of {} has {free} bytes free; {bytes} are needed to go on",
                path.display()
            ));
        }
        Ok(())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn modes_are_tightened_and_never_loosened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("storage");
        prepare(&path).unwrap();
        assert_eq!(mode(&path), 0o711);
        for (name, before, after) in
            [("data", 0o755, 0o700), ("evidence", 0o777, 0o700), ("narrow", 0o500, 0o500)]
        {
            let inner = path.join(name);
            fs::create_dir(&inner).unwrap();
            fs::set_permissions(&inner, Permissions::from_mode(before)).unwrap();
            prepare(&path).unwrap();
            assert_eq!(mode(&inner), after, "{name}");
        }
        make_public(&path.join(PUBLIC)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        prepare(&path).unwrap();
        assert_eq!((mode(&path), mode(&path.join(PUBLIC))), (0o711, 0o755));
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        prepare(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn a_volume_of_a_group_stays_the_groups() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("volume");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("lock"), "").unwrap();
        fs::set_permissions(path.join("lock"), Permissions::from_mode(0o664)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o2775)).unwrap();
        prepare(&path).unwrap();
        assert_eq!((mode(&path), mode(&path.join("lock"))), (0o2771, 0o660));
    }

    #[test]
    fn a_moved_directory_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, away) = (directory.path().join("storage"), directory.path().join("away"));
        fs::create_dir(&path).unwrap();
        let guard = guard(&path, &path.join("data")).unwrap();
        guard.check().unwrap();
        fs::rename(&path, &away).unwrap();
        assert!(guard.check().unwrap_err().contains("moved or removed"));
        fs::create_dir_all(path.join("data")).unwrap();
        assert!(guard.check().unwrap_err().contains("another one is in its place"));
        fs::remove_dir_all(&path).unwrap();
        fs::rename(&away, &path).unwrap();
        guard.check().unwrap();
        fs::remove_dir(path.join("data")).unwrap();
        assert!(guard.check().unwrap_err().contains("data"));
    }
}
