//! The newest sequence that was given out, kept beside the log.
//!
//! Opening a log drops what a crash tore off at its end. A record that was whole and is damaged
//! looks the same, and the library's own watermark is one append behind. So the sequence is written
//! down once its record is synced and before anybody is told. It is not synced itself: a process that
//! is killed leaves it in the page cache, and after a loss of power an older one claims less.

use super::Error;
use crate::{damage, runtime::Runtime};
use commonware_codec::FixedSize as _;
use commonware_cryptography::{Crc32, crc32};
use commonware_runtime::{Blob as _, ReadOptions, WriteOptions};
use tokio::sync::Mutex;

const NAME: &[u8] = b"given-out";
const DAMAGED: &str =
    "the mark of the commit log is damaged: how much of the log was given out is not known";
const SEQUENCE_BYTES: usize = size_of::<u64>();
const BYTES: usize = SEQUENCE_BYTES + crc32::Digest::SIZE;

/// Holds its file open until it is closed.
pub(super) struct Mark<E: Runtime> {
    blob: Mutex<Option<E::Blob>>,
    found: Option<u64>,
}

fn failed(error: commonware_runtime::Error) -> Error {
    Error::Storage(error.to_string())
}

impl<E: Runtime> Mark<E> {
    /// Opens the mark in `partition`, or makes one that claims nothing where there is none or it is damaged.
    pub async fn open(context: &E, partition: &str) -> Result<Self, Error> {
        let (blob, length) = match context.open(partition, NAME).await {
            Err(error) if damage::of_runtime(&error) => {
                tracing::warn!(%error, partition, "{DAMAGED}");
                context.remove(partition, None).await.map_err(failed)?;
                context.open(partition, NAME).await.map_err(failed)?
            }
            opened => opened.map_err(failed)?,
        };
        let mut found = None;
        if length >= BYTES as u64 {
            let bytes = blob.read_at(0, BYTES, ReadOptions::default()).await.map_err(failed)?;
            found = decode(bytes.coalesce().as_ref());
            if found.is_none() {
                tracing::warn!(partition, "{DAMAGED}");
            }
        }
        Ok(Self { blob: Mutex::new(Some(blob)), found })
    }

    /// What the mark said when it was opened.
    pub const fn found(&self) -> Option<u64> {
        self.found
    }

    /// Writes down that everything up to `sequence` is synced and may be given out.
    pub async fn set(&self, sequence: u64) -> Result<(), Error> {
        let blob = self.blob.lock().await;
        let blob = blob.as_ref().ok_or(Error::Poisoned)?;
        blob.write_at(0, encode(sequence), WriteOptions::default()).await.map_err(failed)
    }

    /// Gives the file back, so that it can be opened or removed.
    pub async fn close(&self) {
        self.blob.lock().await.take();
    }
}

/// The sequence and its checksum: a dozen bytes of one sector, so written whole or not at all.
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
