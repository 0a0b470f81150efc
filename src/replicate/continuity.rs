//! The append-only check: does the history behind a newer signed state contain ours?
//!
//! The Merkle nodes that stand for our first N operations are the same in every longer history
//! that contains them. The server proves those nodes under the newer signed root; the root over
//! them must be the one that was signed for our N operations. A valid proof of nodes that give
//! another root means that the publisher signed two histories.

use crate::{
    checkpoint::SignedCheckpoint,
    database::{Fetch, history_at, types::Mode},
    ledger::Ledger,
    link::{Link, LinkError},
    runtime::Runtime,
    wire::{Code, Request, Response},
};

/// What the check found.
#[derive(Debug)]
pub enum Continuity {
    /// The newer history contains ours.
    Proved,
    /// The operations are no longer held, rightly: they lie below the signed range.
    CannotBeProved,
    /// The newer history is another one. The response is the evidence.
    Broken {
        /// The answer that proves it, in the library's encoding.
        response: Vec<u8>,
    },
}

/// Why the check could not be made with this server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The answer proves nothing.
    #[error("{0}")]
    WrongAnswer(String),
    /// The server says that it no longer has what the signed range says it must.
    #[error("the server does not hold operation {0}, although it lies in the signed range")]
    Withheld(u64),
}

/// Checks that the history of `target` contains what `ledger` holds.
pub async fn check<E: Runtime>(
    ledger: &Ledger<E>,
    link: &Link<E>,
    target: &SignedCheckpoint,
) -> Result<Continuity, Error> {
    let ours = ledger.head().checkpoint;
    let target = &target.checkpoint;
    if target.size <= ours.size {
        // Compared by sequence and root before: nothing to prove.
        return Ok(Continuity::Proved);
    }
    let fetch = Fetch::Boundary { size: target.size, start: ours.size };
    let body = match link.request(Request::Fetch(fetch)).await {
        Ok(Response::Operations(body)) => body,
        Ok(_) => return Err(LinkError::Protocol("unexpected answer").into()),
        Err(LinkError::Refused(refused)) if refused.code == Code::Pruned => {
            // A server with compact storage holds no boundary but its own.
            let is_compact = ledger.mode() == Mode::Compact;
            return if is_compact || ours.size < target.floor {
                Ok(Continuity::CannotBeProved)
            } else {
                Err(Error::Withheld(ours.size))
            };
        }
        Err(error) => return Err(error.into()),
    };
    let theirs =
        history_at(ledger.kind(), target.operations_root, target.size, ours.size, body.clone())
            .map_err(Error::WrongAnswer)?;
    if theirs.contains(&ours.operations_root) {
        Ok(Continuity::Proved)
    } else {
        Ok(Continuity::Broken { response: body.to_vec() })
    }
}
