//! The memory of answers that wait for their readers.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of answers of a port that wait for their readers; more are refused with 429.
pub const ANSWERS_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Answers up to this size always find room; connections bound them.
pub const ANSWER_FREE_BYTES: usize = 16 * 1024;

/// The answers of one port. Requests carry it as an extension, so that what takes work to make can
/// be refused before.
#[derive(Clone, Debug)]
pub struct Answers(Arc<Semaphore>);

/// What an answer takes of the memory; given back when dropped.
pub(super) type Room = Option<OwnedSemaphorePermit>;

impl Default for Answers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ANSWERS_BYTES_MAX)))
    }
}

impl Answers {
    /// Room for an answer of `bytes`, if there is any.
    pub(super) fn take(&self, bytes: u64) -> Result<Room, ()> {
        if bytes <= ANSWER_FREE_BYTES as u64 {
            return Ok(None);
        }
        let count = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.0.clone().try_acquire_many_owned(count).map(Some).map_err(|_| ())
    }

    /// Whether three quarters are used: readers that stand still are not waited for then.
    pub fn are_many(&self) -> bool {
        self.0.available_permits() < ANSWERS_BYTES_MAX / 4
    }
}
