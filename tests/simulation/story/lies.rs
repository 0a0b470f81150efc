//! What a liar without the publisher's key may do to a message.

use crate::{FromServer, honest, machine::World};
use bytes::Bytes;
use commonware_cryptography::ed25519::PrivateKey;
use std::time::Duration;
use syncd::{
    database::types::Change,
    wire::{Code, Refused, Response, ServerMessage},
};

/// Habits of a liar.
pub(super) const HABITS: u64 = 9;
/// The habit of one who has a retired key.
pub(super) const THIEF: u64 = 7;

/// `stolen` is a key that was retired, where there is one that everybody knows to be.
pub(super) fn lie(
    world: &World,
    habit: u64,
    stolen: Option<&PrivateKey>,
    seen: &mut Vec<FromServer>,
    message: FromServer,
) -> Vec<Bytes> {
    if !world.one_in(3) {
        remember(world, seen, &message);
        return honest(message);
    }
    let message = match (habit, message) {
        // A value of a commit is another one.
        (
            0 | 1,
            FromServer::Message(ServerMessage::Response {
                id,
                response: Response::Commit { mut commit, trace },
            }),
        ) => {
            for change in &mut commit.changes {
                if let Change::Put { value, .. } | Change::Append { value } = change {
                    value[0] ^= 1;
                }
            }
            FromServer::Message(ServerMessage::Response {
                id,
                response: Response::Commit { commit, trace },
            })
        }
        // A checkpoint says something else than was signed.
        (
            2,
            FromServer::Message(ServerMessage::Response {
                id,
                response: Response::Checkpoint(mut signed),
            }),
        ) => {
            match world.draw(0, 4) {
                0 => signed.checkpoint.sequence += 1,
                1 => signed.checkpoint.size += 1,
                2 => signed.checkpoint.root.0[0] ^= 1,
                _ => signed.checkpoint.signed_at_ms += 1000,
            }
            FromServer::Message(ServerMessage::Response {
                id,
                response: Response::Checkpoint(signed),
            })
        }
        // What the publisher signed, signed by a key that was retired.
        (
            THIEF,
            FromServer::Message(ServerMessage::Response {
                id,
                response: Response::Commit { mut commit, trace },
            }),
        ) => {
            if let Some(key) = stolen {
                commit.checkpoint = commit.checkpoint.checkpoint.sign(key);
            }
            FromServer::Message(ServerMessage::Response {
                id,
                response: Response::Commit { commit, trace },
            })
        }
        // A later state, or the same one later.
        (
            THIEF,
            FromServer::Message(ServerMessage::Response {
                id,
                response: Response::Checkpoint(signed),
            }),
        ) => {
            let mut forged = signed.checkpoint.clone();
            if world.one_in(2) {
                forged.sequence += world.draw(1, 4);
                forged.size += world.draw(1, 20);
                forged.root.0[0] ^= 1;
            } else {
                forged.signed_at_ms += 1000;
            }
            let signed = match stolen {
                Some(key) => Box::new(forged.sign(key)),
                None => signed,
            };
            FromServer::Message(ServerMessage::Response {
                id,
                response: Response::Checkpoint(signed),
            })
        }
        // Something of before, again.
        (3 | 4, message) => match seen.get(world.draw(0, seen.len() as u64 + 1) as usize) {
            Some(old) => retell(old, &message),
            None => message,
        },
        // No answer but a refusal.
        (5, FromServer::Message(ServerMessage::Response { id, .. })) => {
            let codes = [Code::Pruned, Code::Ahead, Code::Busy, Code::Internal];
            let code = codes[world.draw(0, 4) as usize];
            let refused =
                Refused::later(code, "so it says", Duration::from_secs(world.draw(0, 3600)));
            FromServer::Message(ServerMessage::Response {
                id,
                response: Response::Refused(refused),
            })
        }
        // Nothing.
        (6, _) => return Vec::new(),
        // A flipped bit.
        (_, message) => {
            let [frame]: [Bytes; 1] = honest(message).try_into().unwrap();
            let mut bytes = frame.to_vec();
            let at = world.draw(0, bytes.len() as u64) as usize;
            bytes[at] ^= 1 << world.draw(0, 8);
            return vec![bytes.into()];
        }
    };
    honest(message)
}

/// Keeps a message for later.
fn remember(world: &World, seen: &mut Vec<FromServer>, message: &FromServer) {
    let copy = match message {
        FromServer::Reply(reply) => FromServer::Reply(reply.clone()),
        FromServer::Message(message) => FromServer::Message(message.clone()),
    };
    if seen.len() < 40 {
        seen.push(copy);
    } else if world.one_in(8) {
        let at = world.draw(0, 40) as usize;
        seen[at] = copy;
    }
}

/// An old message as the answer to what is asked now.
fn retell(old: &FromServer, now: &FromServer) -> FromServer {
    match (old, now) {
        (FromServer::Reply(reply), FromServer::Reply(_)) => FromServer::Reply(reply.clone()),
        (
            FromServer::Message(ServerMessage::Response { response, .. }),
            FromServer::Message(ServerMessage::Response { id, .. }),
        ) => FromServer::Message(ServerMessage::Response { id: *id, response: response.clone() }),
        (_, FromServer::Reply(reply)) => FromServer::Reply(reply.clone()),
        (_, FromServer::Message(message)) => FromServer::Message(message.clone()),
    }
}
