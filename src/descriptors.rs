//! File descriptors: how many there may be, and who may have them.
//!
//! Storage comes first: a commit that finds none ends a publisher, and whoever may connect could take them all. So the
//! limit is raised as far as the system allows, what storage needs is set aside, and connections share what is left.
//! Connections beyond their share wait in the kernel.

use crate::ledger;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{fs, io, path::Path};

/// Descriptors of the process itself: standard streams, ports, event queues, locks, the export of traces, temporary
/// files.
pub const PROCESS: u64 = 40;
/// Files of a database that is new, or of a second generation that is being built.
pub const DATABASE_FILES_MIN: u64 = 24;
/// What stays free of all that is planned.
pub const SPARE: u64 = 24;
/// Part of the limit that the commit log may take where descriptors are few: one in this many.
pub const LOG_PART: u64 = 8;
/// Files of one segment of the commit log: its records and their offsets.
pub const FILES_PER_SEGMENT: u64 = 2;
/// The fewest connections of each kind with which a daemon starts.
pub const SHARE_MIN: u64 = 8;

/// Kinds of connections, as many as are wanted of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Connections of the HTTP API.
    pub api: usize,
    /// Connections of the metrics port.
    pub metrics: usize,
    /// Sessions of replicas.
    pub sessions: usize,
    /// Handshakes that are going on.
    pub handshakes: usize,
}

impl Shares {
    fn all(&mut self) -> [&mut usize; 4] {
        [&mut self.api, &mut self.metrics, &mut self.sessions, &mut self.handshakes]
    }
}

/// Who may have how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// All that the process may have.
    pub limit: u64,
    /// Set aside for storage.
    pub storage: u64,
    /// Segments that the commit log may have.
    pub log_segments: usize,
    /// Connections.
    pub shares: Shares,
    /// Whether connections were given fewer than wanted.
    pub is_lowered: bool,
}

/// The limit is too low to start.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the limit of open files is {limit}, needed are at least {needed} ({files} files of the storage directory among \
     them): raise it (ulimit -n, LimitNOFILE=)"
)]
pub struct TooFew {
    limit: u64,
    needed: u64,
    files: u64,
}

/// Files of a storage directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Of commit logs.
    pub log: u64,
    /// Of everything else.
    pub database: u64,
}

impl Files {
    /// Counts the files below the directory of the library, each of which is opened once.
    pub fn count(data_dir: &Path) -> io::Result<Self> {
        let mut files = Self::default();
        let partitions = match fs::read_dir(data_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
            partitions => partitions?,
        };
        for partition in partitions {
            let partition = partition?;
            if !partition.file_type()?.is_dir() {
                continue;
            }
            let count = fs::read_dir(partition.path())?.count() as u64;
            let is_log =
                partition.file_name().to_string_lossy().starts_with(crate::commit_log::PARTITIONS);
            *(if is_log { &mut files.log } else { &mut files.database }) += count;
        }
        Ok(files)
    }
}

/// Raises the soft limit to the hard one; returns what holds now. Where it cannot be raised, the soft one holds.
pub fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let unlimited = u64::from(u32::MAX);
    let (current, maximum) = (current.unwrap_or(unlimited), maximum.unwrap_or(unlimited));
    let wanted = Rlimit { current: Some(maximum), maximum: Some(maximum) };
    if current < maximum && setrlimit(Resource::Nofile, wanted).is_ok() { maximum } else { current }
}

/// Divides `limit` between storage with `files` and the connections that are `wanted`.
pub fn plan(limit: u64, files: Files, wanted: Shares) -> Result<Plan, TooFew> {
    // A rebuild of a replica has two generations for a while; a database grows.
    let database = 2 * files.database.max(DATABASE_FILES_MIN);
    let mut shares = wanted;
    let total: u64 = shares.all().iter().map(|share| **share as u64).sum();
    // Where there are plenty, the log may have half of what nobody asks for; the other half is for the database.
    let plenty = limit.saturating_sub(PROCESS + SPARE + database + total);
    let log = files.log.max(limit / LOG_PART).max(plenty / 2);
    let storage = database + log + SPARE;
    let minimum: u64 = shares.all().iter().map(|share| (**share as u64).min(SHARE_MIN)).sum();
    let needed = PROCESS + storage + minimum;
    if limit < needed {
        return Err(TooFew { limit, needed, files: files.database + files.log });
    }
    let left = limit - PROCESS - storage;
    let is_lowered = left < total;
    if is_lowered {
        let beyond = left - minimum;
        for share in shares.all() {
            let least = (*share as u64).min(SHARE_MIN);
            // In proportion to what was wanted beyond the least.
            let part = (*share as u64 - least) * beyond / (total - minimum).max(1);
            *share = usize::try_from(least + part).unwrap_or(usize::MAX);
        }
    }
    // The retention leaves room for what sessions hold beyond it.
    let part = ledger::HOLD_SEGMENTS_PART as u64;
    let log_segments = log / FILES_PER_SEGMENT * part / (part + 1);
    let log_segments = usize::try_from(log_segments).unwrap_or(usize::MAX);
    Ok(Plan { limit, storage, log_segments, shares, is_lowered })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const WANTED: Shares = Shares { api: 512, metrics: 512, sessions: 1024, handshakes: 512 };

    #[test]
    fn connections_get_what_storage_leaves() {
        let plenty = plan(1 << 20, Files::default(), WANTED).unwrap();
        assert_eq!((plenty.shares, plenty.is_lowered), (WANTED, false));
        let files = Files { log: 20, database: 50 };
        for limit in [256, 300, 512, 1024, 2048] {
            let plan = plan(limit, files, WANTED).unwrap();
            let Shares { api, metrics, sessions, handshakes } = plan.shares;
            assert!(plan.is_lowered, "{limit}");
            let connections = (api + metrics + sessions + handshakes) as u64;
            assert!(connections + plan.storage + PROCESS <= limit, "{plan:?}");
            assert!(plan.storage >= files.log + 2 * files.database, "{plan:?}");
            // The retention, and what may be held beyond it.
            let segments = plan.log_segments + plan.log_segments / ledger::HOLD_SEGMENTS_PART;
            let log = segments as u64 * FILES_PER_SEGMENT;
            assert!(plan.log_segments > 0 && log + 2 * files.database <= plan.storage, "{plan:?}");
            assert!(
                [api, metrics, sessions, handshakes].iter().all(|share| *share >= 8),
                "{plan:?}"
            );
            assert!(sessions >= api && api == handshakes && api == metrics, "{plan:?}");
        }
    }

    #[test]
    fn few_are_enough_for_who_wants_few() {
        let wanted = Shares { sessions: 1, handshakes: 4, ..WANTED };
        let plan = plan(256, Files::default(), wanted).unwrap();
        assert_eq!((plan.shares.sessions, plan.shares.handshakes), (1, 4));
    }

    #[test]
    fn too_few_are_refused_by_name() {
        let error = plan(64, Files::default(), WANTED).unwrap_err().to_string();
        assert!(
            error.contains("limit of open files is 64") && error.contains("at least"),
            "{error}"
        );
        let many = Files { log: 1200, database: 30 };
        let error = plan(1024, many, WANTED).unwrap_err().to_string();
        assert!(error.contains("1230 files"), "{error}");
    }

    #[test]
    fn files_are_counted_by_what_they_are_of() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Files::count(&directory.path().join("none")).unwrap(), Files::default());
        for (partition, files) in
            [("commits-0_data", 3), ("commits-0_offsets", 2), ("any-0-nodes", 4)]
        {
            fs::create_dir(directory.path().join(partition)).unwrap();
            for file in 0..files {
                fs::write(directory.path().join(partition).join(file.to_string()), "").unwrap();
            }
        }
        fs::write(directory.path().join(".hold"), "").unwrap();
        assert_eq!(Files::count(directory.path()).unwrap(), Files { log: 5, database: 4 });
    }
}
