//! Pages of a log of values.

use super::{Entry, Name, Page, ReadError, View};
use crate::{
    checkpoint::SignedCheckpoint,
    database::{self, types::Family},
    ledger::Ledger,
    runtime::Runtime,
};
use std::num::NonZeroUsize;

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
    while let Some(wanted) = NonZeroUsize::new(limit.saturating_sub(entries.len())) {
        let page = ledger.entries(next, wanted, bytes_max.saturating_sub(bytes)).await;
        let (head, page) = page.map_err(|error| match error {
            database::Error::Pruned => {
                ReadError::Pruned(format!("operation {next} is no longer held"))
            }
            error => ReadError::Internal(error.to_string()),
        })?;
        next = page.next;
        for entry in page.entries {
            bytes += entry.value.len();
            entries.push(Entry { name: Name::Location(entry.location), value: entry.value });
        }
        if next >= head.checkpoint.size || bytes >= bytes_max {
            break;
        }
    }
    let head = ledger.head();
    Ok(Page { view: view(&head), entries, next: next.min(head.checkpoint.size) })
}
