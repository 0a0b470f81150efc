//! Operations for state sync, over whatever connection there is.

use crate::watch;
use crate::{
    database::{Fetch, FetchError, Fetched, Fetcher, Proved},
    link::{Link, LinkError},
    runtime::Runtime,
    wire::{Code, Request, Response},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Pause before a server that could not answer is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Longest such pause, whatever the server asks for.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);

/// How far a state sync is.
#[derive(Debug, Default)]
pub struct Progress {
    /// Operations of the target.
    pub target: AtomicU64,
    /// Location of the first operation asked for: what lies below was there already.
    pub resumed_at: AtomicU64,
    /// Operations verified since the start.
    pub operations: AtomicU64,
}

impl Progress {
    /// Forgets an earlier sync.
    pub fn begin(&self, target: u64) {
        self.target.store(target, Ordering::Relaxed);
        self.resumed_at.store(u64::MAX, Ordering::Relaxed);
        self.operations.store(0, Ordering::Relaxed);
    }
}

/// Asks the current connection; waits for another one when it breaks.
pub struct LinkSource<E: Runtime> {
    context: E,
    links: watch::Receiver<Option<Arc<Link<E>>>>,
    progress: Arc<Progress>,
    reject: Arc<dyn Fn() + Send + Sync>,
}

impl<E: Runtime> LinkSource<E> {
    /// A source over `links`; `reject` is told of every answer whose proof does not hold.
    pub fn new(
        context: E,
        links: watch::Receiver<Option<Arc<Link<E>>>>,
        progress: Arc<Progress>,
        reject: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self { context, links, progress, reject }
    }

    /// The open connection, once there is one.
    async fn link(&self) -> Result<Arc<Link<E>>, FetchError> {
        let mut links = self.links.clone();
        loop {
            if let Some(link) = links.borrow_and_update().clone().filter(|link| !link.is_closed()) {
                return Ok(link);
            }
            links.changed().await.map_err(|_| FetchError::Cancelled)?;
        }
    }

    /// Waits before `link` is asked again; no longer once another connection takes its place.
    async fn pause(&self, link: &Link<E>, pause: Duration) {
        let pause = pause.clamp(RETRY_PAUSE, RETRY_PAUSE_MAX);
        tokio::select! {
            biased;
            _ = link.closed() => {}
            () = self.context.sleep(pause) => {}
        }
    }
}

#[async_trait::async_trait]
impl<E: Runtime> Fetcher for LinkSource<E> {
    async fn fetch(&self, fetch: Fetch) -> Result<Fetched, FetchError> {
        if matches!(fetch, Fetch::Operations { .. }) {
            self.progress.resumed_at.fetch_min(fetch.start(), Ordering::Relaxed);
        }
        loop {
            let link = self.link().await?;
            match link.request(Request::Fetch(fetch)).await {
                Ok(Response::Operations(body)) => {
                    let (reject, progress) = (self.reject.clone(), self.progress.clone());
                    let verdict = Box::new(move |proved| match proved {
                        Proved::Right { operations } => {
                            progress.operations.fetch_add(operations, Ordering::Relaxed);
                        }
                        Proved::Wrong => {
                            reject();
                            link.close(LinkError::Protocol("the proof of an answer does not hold"));
                        }
                    });
                    return Ok(Fetched { body, verdict });
                }
                Ok(_) => link.close(LinkError::Protocol("unexpected answer")),
                Err(LinkError::Refused(refused)) if refused.code == Code::Pruned => {
                    return Err(FetchError::Pruned);
                }
                Err(LinkError::Refused(refused)) => {
                    tracing::debug!(%refused, "the server asks for patience");
                    self.pause(&link, refused.retry_after).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "a request failed");
                    self.pause(&link, RETRY_PAUSE).await;
                }
            }
        }
    }
}
