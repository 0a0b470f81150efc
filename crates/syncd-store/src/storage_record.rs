//! Small records of the storage, each kept in two equal copies.
//!
//! The library's `Metadata` has two blobs and writes one of them a sync, the older first. That makes a write atomic; it
//! does not make a value survive damage, because a value written once is in one blob only, and a damaged blob reads as
//! an empty one. So [`Records`] writes each change twice, restores equality when it is opened, and tells apart three
//! states that the library does not: never written, written and empty, and damaged.
//!
//! A crash tears no write within a page. The first write of more than a page is preceded by one of no values.
//!
//! **Invariants.** After [`Records::update`] both copies hold the new values. Opening creates nothing. One damaged copy
//! loses nothing; two are [`Error::Damaged`], never "nothing here".

use crate::{damage, runtime::Runtime};
use commonware_codec::{Codec, FixedSize as _};
use commonware_cryptography::{Crc32, crc32};
use commonware_runtime::{BLOB_PAGE_SIZE, Blob as _, Error as RuntimeError, ReadOptions};
use commonware_storage::metadata::{self, Config, Metadata};
use commonware_utils::{Span, sequence::U64};
use std::collections::BTreeMap;

/// The library's names of the two copies.
const COPIES: [&[u8]; 2] = [b"left", b"right"];
/// Bytes of a copy before its values: the version.
const VERSION_BYTES: usize = 8;

/// Most bytes of keys and values that a first write takes in one piece: less than a page of a blob.
const FIRST_BYTES_MAX: usize = BLOB_PAGE_SIZE as usize / 2;
/// The most that a key takes.
const KEY_BYTES: usize = 16;

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No copy can be read.
    #[error("storage record '{partition}' is damaged ({reason})")]
    Damaged {
        /// Its partition.
        partition: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The storage failed.
    #[error("storage record '{partition}': {reason}")]
    Storage {
        /// Its partition.
        partition: String,
        /// Why.
        reason: String,
    },
}

impl Error {
    /// Whether the data are the reason, rather than the disk.
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }
}

/// What one blob holds.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// There is no blob, or nothing was ever written to it.
    Unwritten,
    /// A checksum over it holds: its version and its values, encoded.
    Valid(u64, Vec<u8>),
    /// It was written, and is not what was written.
    Damaged(String),
}

/// The values of one partition.
pub struct Records<E: Runtime, K: Span, V: Codec<Cfg = ()> + Clone> {
    context: E,
    partition: String,
    values: BTreeMap<K, V>,
    is_written: bool,
    was_repaired: bool,
}

impl<E: Runtime, K: Span, V: Codec<Cfg = ()> + Clone> Records<E, K, V> {
    /// Reads the records of `partition`. A damaged or missing copy is written again from the other one; where nothing was
    /// written, nothing is made.
    pub async fn open(context: E, partition: &str) -> Result<Self, Error> {
        let copies = [
            read_copy(&context, partition, COPIES[0]).await?,
            read_copy(&context, partition, COPIES[1]).await?,
        ];
        let mut records = Self {
            context,
            partition: partition.into(),
            values: BTreeMap::new(),
            is_written: false,
            was_repaired: false,
        };
        match &copies {
            [Found::Unwritten, Found::Unwritten] => return Ok(records),
            [Found::Valid(_, left), Found::Valid(_, right)] => {
                records.values = values(&records.library().await?);
                records.is_written = true;
                // Different: the process ended between the two writes of an update.
                if left != right {
                    records.update(|_| ()).await?;
                }
            }
            [Found::Valid(..), other] | [other, Found::Valid(..)] => {
                tracing::warn!(
                    partition,
                    copy = ?other,
                    "one copy of a storage record is damaged or missing: written again from the other one"
                );
                for (name, copy) in COPIES.iter().zip(&copies) {
                    if matches!(copy, Found::Damaged(_)) {
                        records.remove_copy(name).await?;
                    }
                }
                records.values = values(&records.library().await?);
                records.is_written = true;
                records.was_repaired = true;
                records.update(|_| ()).await?;
            }
            [left, right] => return Err(damaged(partition, left, right)),
        }
        Ok(records)
    }

    /// Whether values, or their absence, were ever written here.
    pub const fn is_written(&self) -> bool {
        self.is_written
    }

    /// Whether one copy was found damaged or missing at opening.
    pub const fn was_repaired(&self) -> bool {
        self.was_repaired
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.values.get(key)
    }

    /// All values, by key.
    pub const fn values(&self) -> &BTreeMap<K, V> {
        &self.values
    }

    /// Changes the values. Durable in both copies on return; after an error it may be tried again, and [`Self::get`]
    /// still says what was before.
    pub async fn update(&mut self, change: impl FnOnce(&mut BTreeMap<K, V>)) -> Result<(), Error> {
        // The library would make it again.
        if self.is_written && !partition_exists(&self.context, &self.partition).await? {
            let (partition, reason) = (self.partition.clone(), "it is not there any more".into());
            return Err(Error::Storage { partition, reason });
        }
        let mut next = self.values.clone();
        change(&mut next);
        let bytes: usize = next.values().map(|value| KEY_BYTES + value.encode_size()).sum();
        if !self.is_written && bytes > FIRST_BYTES_MAX {
            // A crash may tear a write of several pages. Without another copy, that would look like damage to what was
            // written before.
            self.write(&BTreeMap::new()).await?;
        }
        self.write(&next).await?;
        self.values = next;
        Ok(())
    }

    /// Writes both copies.
    async fn write(&mut self, values: &BTreeMap<K, V>) -> Result<(), Error> {
        let mut metadata = self.library().await?;
        // Cleared first, so that both copies are written as a whole whatever they hold.
        metadata.clear();
        for (key, value) in values {
            metadata.put(key.clone(), value.clone());
        }
        for _ in COPIES {
            metadata = metadata.sync().await.map_err(|error| self.failed(&error))?;
        }
        self.is_written = true;
        Ok(())
    }

    async fn library(&self) -> Result<Metadata<E, K, V>, Error> {
        let config = Config { partition: self.partition.clone(), codec_config: () };
        let context = self.context.child("record");
        Metadata::init(context, config).await.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &metadata::Error) -> Error {
        let (partition, reason) = (self.partition.clone(), error.to_string());
        if damage::of_metadata(error) {
            Error::Damaged { partition, reason }
        } else {
            Error::Storage { partition, reason }
        }
    }

    async fn remove_copy(&self, name: &[u8]) -> Result<(), Error> {
        match self.context.remove(&self.partition, Some(name)).await {
            Ok(()) | Err(RuntimeError::BlobMissing(..)) => Ok(()),
            Err(error) => Err(storage(&self.partition, &error)),
        }
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unwritten => f.write_str("missing"),
            Self::Valid(version, _) => write!(f, "version {version}"),
            Self::Damaged(reason) => f.write_str(reason),
        }
    }
}

fn values<E: Runtime, K: Span, V: Codec + Clone>(metadata: &Metadata<E, K, V>) -> BTreeMap<K, V> {
    let value = |key: &K| Some((key.clone(), metadata.get(key)?.clone()));
    metadata.keys().filter_map(value).collect()
}

fn storage(partition: &str, error: &RuntimeError) -> Error {
    Error::Storage { partition: partition.into(), reason: error.to_string() }
}

/// Reads a copy without making it.
async fn read_copy<E: Runtime>(context: &E, partition: &str, name: &[u8]) -> Result<Found, Error> {
    match context.scan(partition).await {
        Ok(names) if names.iter().any(|found| found == name) => {}
        Ok(_) | Err(RuntimeError::PartitionMissing(_)) => return Ok(Found::Unwritten),
        Err(error) => return Err(storage(partition, &error)),
    }
    let (blob, length) = match context.open(partition, name).await {
        Ok(opened) => opened,
        Err(error) if damage::of_runtime(&error) => return Ok(Found::Damaged(error.to_string())),
        Err(error) => return Err(storage(partition, &error)),
    };
    if length == 0 {
        return Ok(Found::Unwritten);
    }
    let length = usize::try_from(length).map_err(|_| Error::Damaged {
        partition: partition.into(),
        reason: format!("{length} bytes long"),
    })?;
    let read = blob.read_at(0, length, ReadOptions::default()).await;
    let bytes = read.map_err(|error| storage(partition, &error))?.coalesce();
    Ok(check(bytes.as_ref()))
}

/// Whether the checksum of a copy holds.
fn check(bytes: &[u8]) -> Found {
    let Some(end) =
        bytes.len().checked_sub(crc32::Digest::SIZE).filter(|end| *end >= VERSION_BYTES)
    else {
        return Found::Damaged(format!("only {} bytes", bytes.len()));
    };
    let (content, checksum) = bytes.split_at(end);
    if Crc32::checksum(content).to_be_bytes() != checksum {
        return Found::Damaged("checksum does not match".into());
    }
    let (version, values) = content.split_at(VERSION_BYTES);
    let version = version.iter().fold(0, |version, byte| version << 8 | u64::from(*byte));
    Found::Valid(version, values.to_vec())
}

/// Writes that `partition` holds no records, so that their loss will be noticed. Durable on return.
pub async fn begin<E: Runtime>(context: E, partition: &str) -> Result<(), Error> {
    Records::<E, U64, u8>::open(context, partition).await?.update(|_| ()).await
}

/// Whether records were ever written to `partition`.
///
/// # Errors
///
/// [`Error::Damaged`] if they were and no copy can be read.
pub async fn is_written<E: Runtime>(context: &E, partition: &str) -> Result<bool, Error> {
    let left = read_copy(context, partition, COPIES[0]).await?;
    let right = read_copy(context, partition, COPIES[1]).await?;
    match (&left, &right) {
        (Found::Valid(..), _) | (_, Found::Valid(..)) => Ok(true),
        (Found::Unwritten, Found::Unwritten) => Ok(false),
        _ => Err(damaged(partition, &left, &right)),
    }
}

fn damaged(partition: &str, left: &Found, right: &Found) -> Error {
    let reason = format!("left copy: {left}, right copy: {right}");
    Error::Damaged { partition: partition.into(), reason }
}

/// Whether a partition exists and has blobs in it.
pub async fn partition_exists<E: Runtime>(context: &E, partition: &str) -> Result<bool, Error> {
    match context.scan(partition).await {
        Ok(blobs) => Ok(!blobs.is_empty()),
        Err(RuntimeError::PartitionMissing(_)) => Ok(false),
        // Something that is not ours lies in it: it exists.
        Err(RuntimeError::PartitionCorrupt(_)) => Ok(true),
        Err(error) => Err(storage(partition, &error)),
    }
}

/// Removes a partition, if it exists.
pub async fn remove_partition<E: Runtime>(context: &E, partition: &str) -> Result<(), Error> {
    match context.remove(partition, None).await {
        Ok(()) | Err(RuntimeError::PartitionMissing(_)) => Ok(()),
        Err(error) => Err(storage(partition, &error)),
    }
}
