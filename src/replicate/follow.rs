//! Following the server's log: execute, compare, append, apply.

use crate::{
    checkpoint::SignedCheckpoint,
    commit_log::Commit,
    database::EXECUTION_VERSION,
    ledger::{self, Ledger},
    link::{LinkError, Stream},
    runtime::Runtime,
    telemetry::context::TraceContext,
    wire::Response,
};
use commonware_codec::EncodeSize as _;

/// Commits that share one sync at most. Each is executed on top of the one before.
const BATCH_COMMITS: usize = 64;
/// Bytes of commits that share one sync at most.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Why following ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection, or the server's refusal.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A commit of another execution version: its state has to be synced.
    #[error("commit {0} is of another execution version")]
    ExecutionVersion(u64),
    /// A commit does not build on our state, or executing it does not give what was signed. Either
    /// the server altered it, or the publisher signed another history.
    #[error("commit {} does not lead from our state to the signed one", .0.checkpoint.sequence)]
    DoesNotFollow(Box<SignedCheckpoint>),
    /// Our own storage.
    #[error(transparent)]
    Ledger(ledger::Error),
}

/// What was received together.
pub enum Received {
    /// Commits, not yet verified, and what their publisher's work was traced as.
    Commits(Vec<Commit>, Vec<TraceContext>),
    /// The state that the server is at, signed again.
    Heartbeat(Box<SignedCheckpoint>),
}

/// Waits for the next commits or heartbeat.
pub async fn receive<E: Runtime>(stream: &mut Stream<E>) -> Result<Received, LinkError> {
    let first = match stream.next().await? {
        Response::Checkpoint(checkpoint) => return Ok(Received::Heartbeat(checkpoint)),
        Response::Commit { commit, trace } => (*commit, trace),
        _ => return Err(LinkError::Protocol("unexpected item in a stream of commits")),
    };
    let (first, trace) = first;
    let mut traces = Vec::from_iter(trace);
    let mut bytes = first.encode_size();
    let mut commits = vec![first];
    while commits.len() < BATCH_COMMITS && bytes < BATCH_BYTES {
        match stream.try_next() {
            Some(Response::Commit { commit, trace }) => {
                bytes += commit.encode_size();
                traces.extend(trace);
                commits.push(*commit);
            }
            // A heartbeat between commits says nothing that the commits do not.
            Some(Response::Checkpoint(_)) => {}
            Some(_) => {
                return Err(LinkError::Protocol("unexpected item in a stream of commits"));
            }
            None => break,
        }
    }
    Ok(Received::Commits(commits, traces))
}

/// Executes `commits`, whose signatures were verified, and makes them part of `ledger`.
pub async fn apply<E: Runtime>(ledger: &Ledger<E>, commits: &[Commit]) -> Result<(), Error> {
    let mut previous = ledger.head();
    for commit in commits {
        if commit.execution != EXECUTION_VERSION {
            return Err(Error::ExecutionVersion(commit.sequence()));
        }
        if !commit.follows(&previous) {
            return Err(Error::DoesNotFollow(Box::new(commit.checkpoint.clone())));
        }
        previous = commit.checkpoint.clone();
    }
    let chain = match ledger.execute(commits).await {
        Ok(chain) => chain,
        Err(ledger::Error::Diverged { sequence, .. }) => {
            let commit = commits.iter().find(|commit| commit.sequence() == sequence);
            let checkpoint = commit.map_or(&previous, |commit| &commit.checkpoint);
            return Err(Error::DoesNotFollow(Box::new(checkpoint.clone())));
        }
        // A change that the family does not have: no publisher makes such commits.
        Err(ledger::Error::Database(crate::database::Error::Unsupported(_))) => {
            return Err(Error::DoesNotFollow(Box::new(previous)));
        }
        Err(error) => return Err(Error::Ledger(error)),
    };
    match chain.last() {
        Some(tail) => ledger.commit(commits, tail.clone()).await.map_err(Error::Ledger),
        None => Ok(()),
    }
}
