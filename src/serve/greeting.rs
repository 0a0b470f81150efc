//! A client's first message: is it for this server, and does this server remember what it signed?

use super::{Shared, limits};
use crate::{
    checkpoint::{Checkpoint, Policy, Rotations, SignedCheckpoint},
    database::{
        EXECUTION_VERSION,
        types::{Family, Mode},
    },
    link::{HANDSHAKE_TIMEOUT, Outgoing},
    runtime::Runtime,
    wire::{
        Code, FRAME_BYTES_MAX, Hello, RESPONSE_BYTES_MAX, RESPONSE_OPERATIONS_MAX, Refused, Reply,
        WIRE_VERSION, Welcome, peek_wire_version,
    },
};
use bytes::Bytes;
use commonware_codec::{DecodeExt as _, Encode as _};
use commonware_cryptography::ed25519::PublicKey;
use tokio::sync::mpsc;

/// Reads the client's first message and answers it; an error is the caller's to send.
pub(super) async fn greet<E: Runtime>(
    context: &E,
    shared: &Shared<E>,
    outgoing: &mpsc::Sender<Outgoing>,
    incoming: &mut mpsc::Receiver<Bytes>,
) -> Result<Hello, Refused> {
    let frame = tokio::select! {
        frame = incoming.recv() => frame,
        () = context.sleep(HANDSHAKE_TIMEOUT) => None,
    };
    let frame = frame.ok_or_else(|| Refused::new(Code::Malformed, "no greeting"))?;
    let wire = peek_wire_version(&frame);
    if wire != Some(WIRE_VERSION) {
        return Err(Refused::new(
            Code::UnsupportedVersion,
            format!(
                "this server speaks wire version {WIRE_VERSION}, the client {}",
                wire.unwrap_or(0)
            ),
        ));
    }
    let hello =
        Hello::decode(frame).map_err(|_| Refused::new(Code::Malformed, "undecodable greeting"))?;
    check_match(shared, &hello)?;
    check_memory(shared, &hello)?;
    let head = shared.ledger.head();
    let welcome = Welcome {
        execution: EXECUTION_VERSION,
        hash: shared.ledger.kind().hash,
        checkpoint: head,
        log_first: shared.ledger.log().bounds().first,
        operations_max: RESPONSE_OPERATIONS_MAX,
        bytes_max: u32::try_from(RESPONSE_BYTES_MAX).unwrap_or(FRAME_BYTES_MAX),
        requests_max: u32::try_from(limits::REQUESTS_IN_FLIGHT_MAX).unwrap_or(u32::MAX),
        heartbeat_interval: shared.config.heartbeat_interval,
        rotations: shared.config.rotations.clone(),
    };
    let _ = outgoing.send(Reply::Welcome(Box::new(welcome)).encode().into()).await;
    Ok(hello)
}

/// Database, family and mode must be the ones served.
fn check_match<E: Runtime>(shared: &Shared<E>, hello: &Hello) -> Result<(), Refused> {
    let head = shared.ledger.head().checkpoint;
    let mismatch = |text: String| Err(Refused::new(Code::Mismatch, text));
    if hello.family != head.family {
        return mismatch(format!(
            "this server has a database of family '{}', the client wants '{}'",
            head.family, hello.family
        ));
    }
    let is_served = match hello.mode {
        Mode::Full => shared.config.mode == Mode::Full && shared.ledger.mode() == Mode::Full,
        Mode::Compact => matches!(head.family, Family::Immutable | Family::Keyless),
    };
    if !is_served {
        return mismatch(format!(
            "this server does not serve replicas of mode '{}': family '{}', --mode {}, --storage {}",
            hello.mode,
            head.family,
            shared.config.mode,
            shared.ledger.mode()
        ));
    }
    match hello.database {
        Some(database) if database != head.database => mismatch(format!(
            "this server has database {}, the client has pinned {database}",
            head.database
        )),
        _ => Ok(()),
    }
}

/// A client may hold what we signed and forgot.
fn check_memory<E: Runtime>(shared: &Shared<E>, hello: &Hello) -> Result<(), Refused> {
    let (Some((publisher, tell)), Some(claim)) = (&shared.config.publisher, &hello.newest) else {
        return Ok(());
    };
    // Read after the claim came: our own head cannot be older than it by honest means.
    let head = shared.ledger.head().checkpoint;
    if !shows_amnesia(shared, publisher, &head, hello, claim) {
        return Ok(());
    }
    tell(claim.clone());
    Err(Refused::new(
        Code::Internal,
        format!("this server forgot its own commit {}", claim.checkpoint.sequence),
    ))
}

/// Whether a client shows what our own keys signed and we do not know: a later state, another one
/// for our sequence, or the retirement of the key that we sign with.
fn shows_amnesia<E: Runtime>(
    shared: &Shared<E>,
    publisher: &PublicKey,
    head: &Checkpoint,
    hello: &Hello,
    claim: &SignedCheckpoint,
) -> bool {
    let mut publishers = vec![publisher.clone()];
    publishers.extend(shared.config.rotations.0.iter().map(|rotation| rotation.retired.clone()));
    let (database, family) = (head.database, head.family);
    let mut policy = Policy { publishers, database, family, rotations: Rotations::default() };
    // Only what our keys signed is learned; a forged chain says nothing.
    let _ = policy.learn(&hello.rotations);
    let is_retired = policy.rotations.0.iter().any(|rotation| rotation.retired == *publisher);
    let beyond = claim.checkpoint.sequence > head.sequence;
    let other = claim.checkpoint.sequence == head.sequence && !claim.checkpoint.same_state(head);
    is_retired || (beyond || other) && policy.verify(claim).is_ok()
}
