//! Reads a consistent state in pages, of which one waits at most.

use super::{Entry, ReadError, View};
use crate::{database::Exporter, ledger::ExportHold};
use std::time::Duration;
use tokio::sync::mpsc;

/// How long an export may hold its state, whatever its size...
pub const EXPORT_HOLD_MAX: Duration = Duration::from_secs(600);
/// ...and one second more for so many operations.
pub const EXPORT_OPERATIONS_PER_SECOND_MIN: u64 = 10_000;
/// A consistent state, streamed: pages arrive in `entries` until `Ok(None)` says that it is
/// complete. An `Err`, or a channel that closes before, means that it is not.
pub struct Export {
    /// The state that all entries belong to.
    pub view: View,
    /// The entries, each key once, in no particular order.
    pub entries: tokio::sync::mpsc::Receiver<Result<Option<Vec<Entry>>, ReadError>>,
    /// How long it may take in all.
    pub hold_max: Duration,
}

/// How long an export of so many operations may hold its state.
pub fn hold_max(operations: u64) -> Duration {
    EXPORT_HOLD_MAX + Duration::from_secs(operations / EXPORT_OPERATIONS_PER_SECOND_MIN)
}

/// Starts to read; ends when the receiver is dropped.
pub fn stream_export(view: View, mut exporter: Exporter, hold: ExportHold) -> Export {
    let hold_max = hold_max(exporter.operations());
    let (sender, entries) = mpsc::channel(1);
    // Whoever reads this lives on tokio, so this task may too.
    tokio::spawn(async move {
        let _hold = hold;
        loop {
            let page = exporter.next().await;
            let page = page.map_err(|error| ReadError::Internal(error.to_string()));
            let last = !matches!(page, Ok(Some(_)));
            if sender.send(page).await.is_err() || last {
                return;
            }
        }
    });
    Export { view, entries, hold_max }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_state_is_held_for_longer() {
        let minute = Duration::from_secs(60);
        assert_eq!(hold_max(EXPORT_OPERATIONS_PER_SECOND_MIN * 60), EXPORT_HOLD_MAX + minute);
    }
}
