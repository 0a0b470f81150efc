//! The append-only check: does the history behind a newer signed state contain ours?
//!
//! The Merkle nodes that stand for our first N operations are the same in every longer history
//! that contains them. The server proves those nodes under the newer signed root; the root over
//! them must be the one that was signed for our N operations. A valid proof of nodes that give
//! another root means that the publisher signed two histories.
//!
//! Where the operations are no longer held, the server's own checkpoint for our sequence may show
//! the same: two states signed for one sequence. Its equality proves nothing, since a server may
//! have it from another one.
//!
//! The check needs our signed checkpoint alone, not our data.

use crate::{
    checkpoint::{Admission, Policy, SignedCheckpoint, compare},
    database::{Fetch, types::Mode},
    link::{Link, LinkError},
    runtime::Runtime,
    verify::{self, history_at},
    wire::{Code, Request, Response},
};

/// What the check found.
#[derive(Debug)]
pub enum Continuity {
    /// The newer history contains ours, or the state is no newer one.
    Proved,
    /// The operations are no longer held, rightly: they lie below the signed range.
    CannotBeProved,
    /// The publisher signed two histories.
    Broken(Box<Break>),
}

/// Where two histories part.
#[derive(Debug)]
pub struct Break {
    /// The signed state that contradicts ours.
    pub offered: SignedCheckpoint,
    /// Why.
    pub reason: &'static str,
    /// The answer that proves it, in the library's encoding, where the numbers alone do not.
    pub response: Option<Vec<u8>>,
}

/// What a break by proof is called.
pub const NOT_CONTAINED: &str = "a longer history does not contain ours";

/// Why the check could not be made with this server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The answer proves nothing.
    #[error("{0}")]
    WrongAnswer(verify::Invalid),
    /// The server says that it no longer has what the signed range says it must.
    #[error("the server does not hold operation {0}, although it lies in the signed range")]
    Withheld(u64),
}

/// Checks that the history of `target` contains the state of `ours`. `mode` is how much this
/// replica keeps; `policy` has verified both.
pub async fn check<E: Runtime>(
    ours: &SignedCheckpoint,
    mode: Mode,
    policy: &Policy,
    link: &Link<E>,
    target: &SignedCheckpoint,
) -> Result<Continuity, Error> {
    match compare(&target.checkpoint, &ours.checkpoint) {
        Ok(Admission::Newer) => {}
        Ok(Admission::Resigned | Admission::Stale) => return Ok(Continuity::Proved),
        Err(reason) => return Ok(contradiction(target, reason)),
    }
    let (ours_at, target_at) = (&ours.checkpoint, &target.checkpoint);
    let fetch = Fetch::Boundary { size: target_at.size, start: ours_at.size };
    let body = match link.request(Request::Fetch(fetch)).await {
        Ok(Response::Operations(body)) => body,
        Ok(_) => return Err(LinkError::Protocol("unexpected answer").into()),
        Err(LinkError::Refused(refused)) if refused.code == Code::Pruned => {
            return check_sequence(ours, mode, policy, link, target).await;
        }
        Err(error) => return Err(error.into()),
    };
    let kind = target_at.kind();
    let theirs =
        history_at(kind, target_at.operations_root, target_at.size, ours_at.size, body.clone())
            .map_err(Error::WrongAnswer)?;
    if theirs.contains(&ours_at.operations_root) {
        return Ok(Continuity::Proved);
    }
    let (offered, response) = (target.clone(), Some(body.to_vec()));
    Ok(Continuity::Broken(Box::new(Break { offered, reason: NOT_CONTAINED, response })))
}

/// Where the operations are not held: asks which state the server has for our sequence.
async fn check_sequence<E: Runtime>(
    ours: &SignedCheckpoint,
    mode: Mode,
    policy: &Policy,
    link: &Link<E>,
    target: &SignedCheckpoint,
) -> Result<Continuity, Error> {
    let sequence = ours.checkpoint.sequence;
    match link.request(Request::CheckpointAt { sequence }).await {
        Ok(Response::Checkpoint(theirs)) => {
            // What the publisher did not sign for that sequence says nothing of the publisher.
            let is_answer =
                theirs.checkpoint.sequence == sequence && policy.verify(&theirs).is_ok();
            if is_answer && let Err(reason) = compare(&theirs.checkpoint, &ours.checkpoint) {
                return Ok(contradiction(&theirs, reason));
            }
        }
        // Not held either.
        Err(LinkError::Refused(_)) => {}
        Ok(_) => return Err(LinkError::Protocol("unexpected answer").into()),
        Err(error) => return Err(error.into()),
    }
    // A server with compact storage holds no boundary but its own.
    if mode == Mode::Compact || ours.checkpoint.size < target.checkpoint.floor {
        Ok(Continuity::CannotBeProved)
    } else {
        Err(Error::Withheld(ours.checkpoint.size))
    }
}

/// Two signed states whose numbers alone contradict each other.
fn contradiction(offered: &SignedCheckpoint, reason: &'static str) -> Continuity {
    Continuity::Broken(Box::new(Break { offered: offered.clone(), reason, response: None }))
}
