//! The newest sequence that was given out, kept beside the log.
//!
//! Opening a log drops what a crash tore off at its end. A record that was whole and is damaged
//! looks the same, and the library's own watermark is one append behind. So the sequence is written
//! down once its record is synced and before anybody is told. It is not synced itself: a process that
//! is killed leaves it in the page cache, and after a loss of power an older one claims less.
//!
//! **Invariants.** The file is made with both copies, durably, so that its absence is damage. Each copy is a dozen bytes of
//! a sector of its own, written whole or not at all, and says at least what was given out: one that is damaged loses nothing.

use super::Error;
use crate::{damage, runtime::Runtime, storage_record};
use commonware_codec::FixedSize as _;
use commonware_cryptography::{Crc32, crc32};
use commonware_runtime::{Blob as _, ReadOptions, WriteOptions};
use tokio::sync::Mutex;

const NAME: &[u8] = b"given-out";
const SEQUENCE_BYTES: usize = size_of::<u64>();
const BYTES: usize = SEQUENCE_BYTES + crc32::Digest::SIZE;
/// Where the copies are.
const COPIES: [u64; 2] = [0, 4096];

/// Holds its file open until it is closed.
pub(super) struct Mark<E: Runtime> {
    blob: Mutex<Option<E::Blob>>,
    found: Option<u64>,
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Storage(error.to_string())
}

impl<E: Runtime> Mark<E> {
    /// Makes the mark of a new log, in place of any that is there. Durable on return.
    pub(super) async fn create(context: &E, partition: &str, sequence: u64) -> Result<Self, Error> {
        storage_record::remove_partition(context, partition).await.map_err(failed)?;
        let (blob, _) = context.open(partition, NAME).await.map_err(failed)?;
        let mark = Self { blob: Mutex::new(Some(blob)), found: Some(sequence) };
        mark.set(sequence).await?;
        mark.sync().await?;
        Ok(mark)
    }

    /// Opens the mark in `partition`. One that is missing or damaged claims nothing, and says so.
    pub(super) async fn open(context: &E, partition: &str) -> Result<Self, Error> {
        let (blob, length) = match context.open(partition, NAME).await {
            Err(error) if damage::of_runtime(&error) => {
                context.remove(partition, Some(NAME)).await.map_err(failed)?;
                context.open(partition, NAME).await.map_err(failed)?
            }
            opened => opened.map_err(failed)?,
        };
        let mut copies = [None; COPIES.len()];
        for (copy, at) in copies.iter_mut().zip(COPIES) {
            if length >= at + BYTES as u64 {
                let bytes =
                    blob.read_at(at, BYTES, ReadOptions::default()).await.map_err(failed)?;
                *copy = decode(bytes.coalesce().as_ref());
            }
        }
        if copies.contains(&None) {
            tracing::warn!(
                partition,
                "what says how much of the commit log was given out is missing or damaged"
            );
        }
        let found = copies.into_iter().flatten().max();
        Ok(Self { blob: Mutex::new(Some(blob)), found })
    }

    /// What the mark said when it was opened; `None` if it could not be read.
    pub(super) const fn found(&self) -> Option<u64> {
        self.found
    }

    /// Writes down that everything up to `sequence` is synced and may be given out.
    pub(super) async fn set(&self, sequence: u64) -> Result<(), Error> {
        let blob = self.blob.lock().await;
        let blob = blob.as_ref().ok_or(Error::Poisoned)?;
        for at in COPIES {
            blob.write_at(at, encode(sequence), WriteOptions::default()).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Makes what was written down durable: until then the end of the machine, but not of the process, may undo it.
    pub(super) async fn sync(&self) -> Result<(), Error> {
        let blob = self.blob.lock().await;
        blob.as_ref().ok_or(Error::Poisoned)?.sync().await.map_err(failed)
    }

    /// Closes the file, so that it can be opened or removed.
    pub(super) async fn close(&self) {
        self.blob.lock().await.take();
    }
}

/// The sequence and its checksum.
fn encode(sequence: u64) -> Vec<u8> {
    let mut bytes = sequence.to_be_bytes().to_vec();
    let checksum = Crc32::checksum(&bytes);
    bytes.extend(checksum.to_be_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let sequence = u64::from_be_bytes(bytes.get(..SEQUENCE_BYTES)?.try_into().ok()?);
    (encode(sequence) == bytes).then_some(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_mark_claims_nothing() {
        for sequence in [0, 1, 0x0102_0304_0506_0708, u64::MAX] {
            let bytes = encode(sequence);
            assert_eq!(bytes.len(), BYTES);
            assert_eq!(decode(&bytes), Some(sequence));
            for bit in 0..8 * BYTES {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(decode(&damaged), None, "bit {bit} of {sequence}");
            }
        }
        assert_eq!(decode(&[0; BYTES]), None);
        assert_eq!(decode(&[]), None);
    }
}
