//! Pages of a log of values.

use super::{Page, ReadError, View};
use crate::{
    checkpoint::SignedCheckpoint,
    database::{self, PAGE_OPERATIONS, entries_of, types::Family},
    ledger::Ledger,
    runtime::Runtime,
};
use std::num::NonZeroU64;

/// Operations read at a time: with values of the largest size a few MiB.
const STEP: u64 = PAGE_OPERATIONS / 8;

/// Reads values from `from` on, until there are `limit`, or about `bytes_max` bytes of them.
pub async fn read_entries<E: Runtime>(
    ledger: &Ledger<E>,
    from: u64,
    limit: usize,
    bytes_max: usize,
    view: impl Fn(&SignedCheckpoint) -> View,
) -> Result<Page, ReadError> {
    let family = ledger.kind().family;
    if family != Family::Keyless {
        return Err(ReadError::Unsupported {
            code: "unsupported",
            message: format!("family '{family}' has keys, not entries; see /v1/keys"),
        });
    }
    let (mut entries, mut next, mut bytes) = (Vec::new(), from, 0);
    loop {
        let head = ledger.head();
        let size = head.checkpoint.size;
        if entries.len() >= limit || bytes >= bytes_max || next >= size {
            return Ok(Page { view: view(&head), entries, next: next.min(size) });
        }
        let wanted = (limit - entries.len()) as u64;
        let max = NonZeroU64::new(wanted.min(STEP)).unwrap_or(NonZeroU64::MIN);
        let (_, operations) = ledger.operations(next, max).await.map_err(|error| match error {
            database::Error::Pruned => {
                ReadError::Pruned(format!("operation {next} is no longer held"))
            }
            error => ReadError::Internal(error.to_string()),
        })?;
        let start = next;
        next += operations.len() as u64;
        let found = entries_of(start, operations);
        bytes += found.iter().map(|entry| entry.value.len()).sum::<usize>();
        entries.extend(found);
    }
}
