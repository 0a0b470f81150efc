//! Whether the process has begun to drain: what waits for something else ends then.

use crate::watch;
use std::time::Duration;

/// Knows whether the process drains.
#[derive(Clone)]
pub(super) struct Drain(watch::Receiver<bool>);

impl Drain {
    pub(super) const fn new(draining: watch::Receiver<bool>) -> Self {
        Self(draining)
    }

    #[cfg(test)]
    pub(super) fn never() -> Self {
        Self(watch::channel(false).1)
    }

    /// Whether the process drains.
    pub(super) fn has_begun(&self) -> bool {
        *self.0.borrow()
    }

    /// Resolves once the process drains.
    pub(super) async fn begun(&self) {
        let mut draining = self.0.clone();
        if draining.wait_for(|draining| *draining).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Resolves once the process has drained for `time`.
    pub(super) async fn begun_for(&self, time: Duration) {
        self.begun().await;
        tokio::time::sleep(time).await;
    }
}
