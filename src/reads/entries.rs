//! Pages of a log of values.

use super::{Entry, Name, Page, ReadError, Unsupported, View};
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
            why: Unsupported::Family,
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
    let named = |entry: database::LogEntry| Entry {
        name: Name::Location(entry.location),
        value: entry.value,
    };
    let next = page.next.min(head.checkpoint.size);
    Ok(Page { view: view(&head), entries: page.entries.into_iter().map(named).collect(), next })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::Checkpoint,
        commit_log::Commit,
        database::{
            Kind, OpenAt, Place, SCAN_OPERATIONS_MAX,
            record::CommitMetadata,
            types::{Change, Digest, HashKind, Mode},
        },
    };
    use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
    use commonware_runtime::{Runner as _, Supervisor as _, deterministic};

    /// A log of values of which the first value stands behind `empty` empty commits.
    async fn ledger(
        context: &deterministic::Context,
        empty: u64,
    ) -> Ledger<deterministic::Context> {
        let kind = Kind { family: Family::Keyless, hash: HashKind::Blake3 };
        let place = Place { generation: 0, mode: Mode::Full };
        let opened = context.child("database");
        let database = database::open(opened, kind, place, OpenAt::Latest).await.unwrap();
        let (state, key) = (database.state().unwrap(), PrivateKey::from_seed(1));
        let base = Checkpoint {
            database: Digest([1; 32]),
            family: kind.family,
            hash: kind.hash,
            sequence: 1,
            floor: state.floor,
            size: state.size,
            root: state.root,
            operations_root: state.operations_root,
            committed_at_ms: 1,
            signed_at_ms: 1,
        };
        let ledger = Ledger::create(context, place, database, base.sign(&key)).await.unwrap();
        for sequence in 2..empty + 3 {
            let head = ledger.head().checkpoint;
            let metadata = CommitMetadata { sequence, committed_at_ms: sequence };
            let value = Change::Append { value: b"at last".to_vec() };
            let changes = if sequence < empty + 2 { Vec::new() } else { vec![value] };
            let prepared = ledger.prepare(&changes, metadata).await.unwrap();
            let state = prepared.state;
            let commit =
                Commit::following(head, state, metadata, changes, Vec::new(), sequence, &key);
            ledger.commit(&[commit], prepared).await.unwrap();
        }
        ledger
    }

    #[test]
    fn a_page_ends_after_a_bounded_number_of_operations() {
        let runner = deterministic::Runner::default();
        runner.start(|context| async move {
            let empty = SCAN_OPERATIONS_MAX + SCAN_OPERATIONS_MAX / 4;
            let ledger = ledger(&context, empty).await;
            let view = |head: &SignedCheckpoint| View {
                database: head.checkpoint.database,
                size: head.checkpoint.size,
                root: head.checkpoint.root,
                lag_seconds: 0.0,
            };
            let page = read_entries(&ledger, 0, 10, 1000, view).await.unwrap();
            assert_eq!((page.entries.len(), page.next), (0, SCAN_OPERATIONS_MAX));
            assert!(page.next < page.view.size, "it goes on");
            let page = read_entries(&ledger, page.next, 10, 1000, view).await.unwrap();
            let [entry] = &page.entries[..] else { panic!("{page:?}") };
            assert_eq!(entry.value, b"at last"[..]);
            assert_eq!(page.next, page.view.size);
        });
    }
}
