//! Who has a storage directory.

use std::{
    fs::{File, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

/// Why a storage directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another process has it.
    #[error("the storage directory {} is in use by {owner}", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// What the lock file says of its owner.
        owner: String,
    },
    /// It cannot be written.
    #[error("the storage directory {} cannot be used: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Exclusive use of a storage directory, until dropped or until the process dies.
#[derive(Debug)]
pub struct DirectoryLock(#[allow(dead_code, reason = "held for its lock")] File);

impl DirectoryLock {
    /// Takes the lock of a directory that is there, and proves that it can be written: the storage below would wait for
    /// its own lock, and panic where it cannot write.
    pub fn take(path: &Path) -> Result<Self, DirectoryError> {
        let (lock, unwritten) = Self::take_unwritten(path)?;
        match unwritten {
            None => Ok(lock),
            Some(source) => Err(DirectoryError::Io { path: path.to_path_buf(), source }),
        }
    }

    /// Takes the lock of a directory that is there. Beside it, why the directory cannot be written, where that is
    /// for want of room: a replica reads on without.
    pub fn take_unwritten(path: &Path) -> Result<(Self, Option<io::Error>), DirectoryError> {
        let failed = |source| DirectoryError::Io { path: path.to_path_buf(), source };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join("lock"))
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.take(OWNER_BYTES_MAX).read_to_string(&mut text);
                let owner = Owner::from_text(&text).describe(&Owner::of_this_process());
                return Err(DirectoryError::Locked { path: path.to_path_buf(), owner });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let mut write = || {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(Owner::of_this_process().to_text().as_bytes())?;
            file.sync_all()?;
            let mut probe = tempfile::tempfile_in(path)?;
            probe.write_all(b"probe")?;
            probe.sync_all()
        };
        let unwritten = match write() {
            Ok(()) => None,
            Err(error) if is_full(&error) => Some(error),
            Err(error) => return Err(failed(error)),
        };
        Ok((Self(file), unwritten))
    }
}

/// Whether an error says that there is no room.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether a process has a storage directory.
pub fn is_locked(path: &Path) -> Result<bool, DirectoryError> {
    let failed = |source| DirectoryError::Io { path: path.to_path_buf(), source };
    let file = File::open(path.join("lock")).map_err(failed)?;
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Most bytes of a lock file that are read.
const OWNER_BYTES_MAX: u64 = 1024;

/// What a lock file says of the process that holds it. A number alone means nothing: each PID namespace has a
/// process 1, and a directory may be shared between machines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Owner {
    process: Option<u32>,
    pid_namespace: String,
    boot: String,
}

impl Owner {
    fn of_this_process() -> Self {
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            process: Some(std::process::id()),
            pid_namespace: namespace.display().to_string(),
            boot: boot.trim().to_string(),
        }
    }

    fn to_text(&self) -> String {
        let process = self.process.unwrap_or_default();
        format!("{process}\npid_namespace={}\nboot={}\n", self.pid_namespace, self.boot)
    }

    fn from_text(text: &str) -> Self {
        let value = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_default().to_string()
        };
        Self {
            process: text.lines().next().and_then(|line| line.trim().parse().ok()),
            pid_namespace: value("pid_namespace"),
            boot: value("boot"),
        }
    }

    /// In words, as far as they mean something to `reader`.
    fn describe(&self, reader: &Self) -> String {
        let Some(process) = self.process else { return "another process".into() };
        // What is not known is no difference.
        let differs =
            |ours: &str, theirs: &str| !ours.is_empty() && !theirs.is_empty() && ours != theirs;
        if differs(&self.boot, &reader.boot) {
            format!("process {process} of another machine")
        } else if differs(&self.pid_namespace, &reader.pid_namespace) {
            format!("process {process} of another PID namespace (a container)")
        } else {
            format!("process {process}")
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner() {
        let directory = tempfile::tempdir().unwrap();
        let lock = DirectoryLock::take(directory.path()).unwrap();
        let error = DirectoryLock::take(directory.path()).unwrap_err();
        assert!(matches!(error, DirectoryError::Locked { .. }));
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        assert!(is_locked(directory.path()).unwrap());
        drop(lock);
        assert!(!is_locked(directory.path()).unwrap());
        DirectoryLock::take(directory.path()).unwrap();
    }

    #[test]
    fn a_number_of_another_namespace_is_not_given_as_ours() {
        let ours = Owner::of_this_process();
        assert_eq!(Owner::from_text(&ours.to_text()), ours);
        assert_eq!(ours.describe(&ours), format!("process {}", std::process::id()));
        let inner =
            Owner { process: Some(1), pid_namespace: "pid:[1]".into(), boot: ours.boot.clone() };
        assert!(inner.describe(&ours).contains("of another PID namespace"));
        let elsewhere = Owner { boot: "other".into(), ..inner };
        assert!(elsewhere.describe(&ours).contains("of another machine"));
        for text in ["", "\n", "nonsense"] {
            assert_eq!(Owner::from_text(text).describe(&ours), "another process");
        }
    }

    #[test]
    fn a_file_is_no_directory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = DirectoryLock::take(file.path()).unwrap_err();
        assert!(matches!(error, DirectoryError::Io { .. }));
    }
}
