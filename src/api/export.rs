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
            let page = exporter.next().await;
            let page = page.map_err(|error| ReadError::Internal(error.to_string()));
            let last = !matches!(page, Ok(Some(_)));
            if sender.send(page).await.is_err() || last {
                return;
            }
        }
    });
    Export { view, entries }
}
