//! Pages of a log of values.

use super::{Entry, Name, Page, ReadError, View};
use crate::{
    checkpoint::SignedCheckpoint,
    database::{self, types::Family},
    ledger::Ledger,
    runtime::Runtime,
};
use std::num::NonZeroUsize;

/// Reads values from `from` on, until there are `limit`, or about `bytes_max` bytes of them, or
/// [`database::SCAN_OPERATIONS_MAX`] operations were looked at.
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
    let wanted = NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN);
    // One look: it ends after a bounded number of operations, whatever they are.
    let page = ledger.entries(from, wanted, bytes_max).await;
    let (head, page) = page.map_err(|error| match error {
        database::Error::Pruned => ReadError::Pruned(format!("operation {from} is no longer held")),
        error => ReadError::Internal(error.to_string()),
    })?;
    let named =
        |entry: database::Entry| Entry { name: Name::Location(entry.location), value: entry.value };
    let next = page.next.min(head.checkpoint.size);
    Ok(Page { view: view(&head), entries: page.entries.into_iter().map(named).collect(), next })
}
