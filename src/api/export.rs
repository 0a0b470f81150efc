//! Turns an exporter into a stream of pages, with one page waiting at most.

use super::{Export, ReadError, View};
use crate::{database::Exporter, ledger::Hold};
use tokio::sync::mpsc;

/// Starts to read; ends when the receiver is dropped.
pub fn stream_export(view: View, mut exporter: Exporter, hold: Hold) -> Export {
    let (sender, entries) = mpsc::channel(1);
    // HTTP lives on tokio alone, so this task may too.
    tokio::spawn(async move {
        let _hold = hold;
        loop {
            let page = match exporter.next().await {
                Ok(Some(page)) => Ok(page),
                Ok(None) => return,
                Err(error) => Err(ReadError::Internal(error.to_string())),
            };
            let failed = page.is_err();
            if sender.send(page).await.is_err() || failed {
                return;
            }
        }
    });
    Export { view, entries }
}
