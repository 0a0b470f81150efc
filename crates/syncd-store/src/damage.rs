//! Which errors of the library mean that the data are damaged, rather than that the disk is unable: the exit code (65 or
//! 74) and what an operator does depend on it.

use commonware_runtime::Error as RuntimeError;
use commonware_storage::{journal, merkle, metadata, qmdb};

/// Whether a blob is not what was written to it.
pub const fn of_runtime(error: &RuntimeError) -> bool {
    matches!(
        error,
        RuntimeError::BlobCorrupt(..)
            | RuntimeError::BlobLayoutMismatch { .. }
            | RuntimeError::BlobVersionMismatch { .. }
            | RuntimeError::BlobInsufficientLength
            | RuntimeError::BlobMissing(..)
            | RuntimeError::PartitionCorrupt(_)
            | RuntimeError::PartitionMissing(_)
            | RuntimeError::InvalidChecksum
    )
}

/// Whether a record of the library is damaged.
pub const fn of_metadata(error: &metadata::Error) -> bool {
    match error {
        metadata::Error::Corruption(_) => true,
        metadata::Error::Runtime(error) => of_runtime(error),
    }
}

/// Whether a journal is damaged.
pub const fn of_journal(error: &journal::Error) -> bool {
    match error {
        journal::Error::Corruption(_)
        | journal::Error::Codec(_)
        | journal::Error::ChecksumMismatch(..)
        | journal::Error::OffsetDataMismatch { .. }
        | journal::Error::InvalidBlobName(_)
        | journal::Error::InvalidBlobSize(..) => true,
        journal::Error::Runtime(error) => of_runtime(error),
        journal::Error::Metadata(error) => of_metadata(error),
        _ => false,
    }
}

/// Whether a database is damaged.
pub fn of_database<F: merkle::Family>(error: &qmdb::Error<F>) -> bool {
    match error {
        qmdb::Error::DataCorrupted(_) | qmdb::Error::UnexpectedData(_) => true,
        qmdb::Error::Runtime(error) => of_runtime(error),
        qmdb::Error::Metadata(error) => of_metadata(error),
        qmdb::Error::Journal(error) => of_journal(error),
        qmdb::Error::Merkle(error) => match error {
            merkle::Error::Journal(error) => of_journal(error),
            merkle::Error::Metadata(error) => of_metadata(error),
            merkle::Error::InvalidSize(_)
            | merkle::Error::MissingNode(_)
            | merkle::Error::InvalidPinnedNodes
            | merkle::Error::RootMismatch
            | merkle::Error::DataCorrupted(_) => true,
            _ => false,
        },
        _ => false,
    }
}
