//! A verified replica inside an application's own process.
//!
//! [`Replica`] is what `syncd-client` is made of, without its ports, flags and log: it connects to a server, keeps a
//! copy in a directory, proves it equal to what the publisher signed, follows it, and answers reads from it.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use syncd::{Replica, Server, Trust, keys};
//!
//! let server = Server {
//!     address: "syncd.example:8080".into(),
//!     key: keys::parse_public("identity.pub")?,
//! };
//! let trust = Trust {
//!     publishers: vec![keys::parse_public("publisher.pub")?],
//!     database: keys::parse_database("database.id")?,
//! };
//! let replica = Replica::builder("/var/lib/app/replica", server, trust).open().await?;
//! replica.wait_for(1).await?;
//! let read = replica.get(b"greeting").await?;
//! println!("{:?} as of commit {}", read.value, read.checkpoint.checkpoint.sequence);
//! replica.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Where it runs
//!
//! The replica's own work (network, disk, verification) runs on threads of its own, because the storage library brings
//! its runtime with it; a busy application does not hold it up, and the reverse. Every method is called from the
//! application's tokio runtime, and any of their futures may be dropped at any time: nothing is lost by it. One process
//! may hold several replicas, each in its own directory.

mod builder;

pub use builder::{Builder, OpenError, Server};

use crate::{
    checkpoint::SignedCheckpoint,
    client::{reader::Reader, state::ReplicaState},
    documents::Status,
    reads::{Page, ReadError, Subject},
    runtime::Runtime as _,
    verify::{ProofFile, Trust},
    watch,
};
use bytes::Bytes;
use commonware_runtime::{Metrics as _, tokio::Context};
use futures::Stream;
use std::{
    path::Path,
    sync::{Arc, Weak},
};

/// Why a replica does not run any more. What it has verified is safe in its directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// It was closed.
    #[error("the replica was closed")]
    Closed,
    /// The server has something else than what is trusted, and nothing has been verified that could be served on.
    #[error("{0}")]
    Refused(String),
    /// The replica's storage failed, or is damaged.
    #[error("the replica's storage failed: {0}")]
    Storage(String),
    /// A defect of this library; a panic was reported by the panic hook.
    #[error("the replica ended unexpectedly: {0}")]
    Unexpected(String),
}

/// What was read, and the signed state it was read from.
#[derive(Clone, Debug)]
pub struct Read {
    /// The value; `None` if the key has none in that state.
    pub value: Option<Bytes>,
    /// The state that the value was read from.
    pub checkpoint: SignedCheckpoint,
}

/// A verified replica in this process. See `examples/embedded.rs`.
///
/// Dropping it lets it end in the background; [`Self::close`] waits for that, and says how it ended.
pub struct Replica {
    /// Taken when it is closed.
    reader: Option<Reader<Context>>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<Option<Ended>>,
}

impl Replica {
    /// A replica in `directory` that replicates from `server` what `trust` allows, and nothing else.
    pub fn builder(directory: impl AsRef<Path>, server: Server, trust: Trust) -> Builder {
        Builder::new(directory.as_ref(), server, trust)
    }

    fn reader(&self) -> &Reader<Context> {
        self.reader.as_ref().expect("taken by close only, which takes the replica")
    }

    fn state(&self) -> &Arc<ReplicaState<Context>> {
        self.reader().replica()
    }

    /// The newest value of `key` that was verified, and the state it belongs to.
    ///
    /// # Errors
    ///
    /// [`ReadError::NoVerifiedState`] until the first state is there, [`ReadError::Unsupported`] for families and modes
    /// without keys, [`ReadError::Internal`] if the storage fails.
    pub async fn get(&self, key: &[u8]) -> Result<Read, ReadError> {
        let (checkpoint, value) = self.reader().get(key).await?;
        Ok(Read { value, checkpoint })
    }

    /// Values of a log (family `keyless`) from location `from` on, until there are `limit` of them or about `bytes_max`
    /// bytes; [`Page::next`] says where to go on.
    ///
    /// # Errors
    ///
    /// As [`Self::get`]; [`ReadError::Pruned`] for what is no longer held.
    pub async fn entries(
        &self,
        from: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Page, ReadError> {
        self.reader().entries(from, limit, bytes_max).await
    }

    /// A proof of what a key holds, or of an operation, that convinces whoever trusts the publisher's key.
    ///
    /// # Errors
    ///
    /// As [`Self::get`]; [`ReadError::Unsupported`] where the family cannot prove the subject.
    pub async fn prove(&self, subject: Subject) -> Result<ProofFile, ReadError> {
        self.reader().prove(subject).await
    }

    /// The signed state that reads see; `None` until the first is verified.
    pub fn checkpoint(&self) -> Option<SignedCheckpoint> {
        self.state().head()
    }

    /// How things stand: what it does, how far it is behind, what went wrong last.
    pub fn status(&self) -> Status {
        self.state().status(self.reader().context().moment())
    }

    /// Everything that the replica measures, as OpenMetrics text.
    pub fn metrics(&self) -> String {
        self.reader().context().encode()
    }

    /// Waits until the state that reads see has at least `size` operations, as a write's receipt names them: after it,
    /// this replica shows that write.
    ///
    /// # Errors
    ///
    /// [`Ended`] if it ended before. Bound the time with [`tokio::time::timeout`].
    pub async fn wait_for(&self, size: u64) -> Result<SignedCheckpoint, Ended> {
        let mut sizes = self.state().size.subscribe();
        let mut ended = self.ended.clone();
        tokio::select! {
            biased;
            reached = sizes.wait_for(|now| *now >= size) => {
                if reached.is_ok() && let Some(checkpoint) = self.checkpoint() {
                    return Ok(checkpoint);
                }
            }
            _ = ended.wait_for(Option::is_some) => {}
        }
        Err(self.ended.borrow().clone().unwrap_or(Ended::Closed))
    }

    /// Every new state that reads see, from the present one on. A slow reader sees the newest, not each. Ends with the
    /// replica.
    pub fn states(&self) -> States {
        let sizes = self.state().size.subscribe();
        let state = Arc::downgrade(self.state());
        States(Box::pin(futures::stream::unfold((sizes, state, 0), next_state)))
    }

    /// Waits until the replica ends by itself.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or(Ended::Closed),
            Err(_) => Ended::Unexpected("its thread is gone".into()),
        }
    }

    /// Ends it in order: the work stops between two commits, the storage is synced and given back.
    ///
    /// # Errors
    ///
    /// Why it had ended before, or could not end in order.
    pub async fn close(mut self) -> Result<(), Ended> {
        // What it holds of the storage goes first.
        self.reader = None;
        self.stop.send_replace(true);
        match self.ended().await {
            Ended::Closed => Ok(()),
            why => Err(why),
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// What [`States`] remembers: sizes as they change, the replica while it lives, and the last size given out.
type Seen = (watch::Receiver<u64>, Weak<ReplicaState<Context>>, u64);

async fn next_state((mut sizes, state, seen): Seen) -> Option<(SignedCheckpoint, Seen)> {
    sizes.wait_for(|size| *size > seen).await.ok()?;
    let head = state.upgrade()?.head()?;
    let size = head.checkpoint.size;
    Some((head, (sizes, state, size)))
}

/// The states of a replica. See [`Replica::states`].
pub struct States(std::pin::Pin<Box<dyn Stream<Item = SignedCheckpoint> + Send>>);

impl Stream for States {
    type Item = SignedCheckpoint;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<SignedCheckpoint>> {
        self.0.as_mut().poll_next(context)
    }
}
