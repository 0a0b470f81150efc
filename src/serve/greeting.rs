//! A client's first message: is it for this server, and does this server remember what it signed?

use super::{Shared, limits};
use crate::{
    checkpoint::{Policy, SignedCheckpoint},
    database::{
        EXECUTION_VERSION,
        types::{Family, Mode},
    },
    link::{HANDSHAKE_TIMEOUT, Outgoing},
    runtime::Runtime,
    wire::{
        Code, Extensions, FRAME_BYTES_MAX, Features, Hello, RESPONSE_BYTES_MAX,
        RESPONSE_OPERATIONS_MAX, Refused, Reply, Versions, Welcome,
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
        biased;
        frame = incoming.recv() => frame,
        () = context.sleep(HANDSHAKE_TIMEOUT) => None,
    };
    let frame = frame.ok_or_else(|| Refused::new(Code::Malformed, "no greeting"))?;
    let versions = Versions::peek(&frame)
        .ok_or_else(|| Refused::new(Code::Malformed, "undecodable greeting"))?;
    let Some(version) = Versions::OURS.common(versions) else {
        let ours = Versions::OURS;
        let text = format!("this server speaks wire {ours}, the client wire {versions}");
        return Err(Refused::new(Code::UnsupportedVersion, text));
    };
    let hello =
        Hello::decode(frame).map_err(|_| Refused::new(Code::Malformed, "undecodable greeting"))?;
    check_match(shared, &hello)?;
    check_memory(shared, &hello).await?;
    let head = shared.ledger.head();
    let welcome = Welcome {
        version,
        features: Features::OURS.common(hello.features),
        execution: EXECUTION_VERSION,
        hash: shared.ledger.kind().hash,
        checkpoint: head,
        log_first: shared.ledger.log().bounds().first,
        operations_max: RESPONSE_OPERATIONS_MAX,
        bytes_max: u32::try_from(RESPONSE_BYTES_MAX).unwrap_or(FRAME_BYTES_MAX),
        requests_max: u32::try_from(limits::REQUESTS_IN_FLIGHT_MAX).unwrap_or(u32::MAX),
        heartbeat_interval: shared.config.heartbeat_interval,
        rotations: shared.config.rotations.clone(),
        extensions: Extensions::default(),
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
async fn check_memory<E: Runtime>(shared: &Shared<E>, hello: &Hello) -> Result<(), Refused> {
    let (Some((publisher, tell)), Some(claim)) = (&shared.config.publisher, &hello.newest) else {
        return Ok(());
    };
    let policy = policy_of_publisher(shared, publisher, hello);
    let is_retired = policy.rotations.0.iter().any(|rotation| rotation.retired == *publisher);
    if !is_retired && !is_unknown(shared, claim).await {
        return Ok(());
    }
    if !is_retired && let Err(refusal) = policy.verify(claim) {
        // Forged, or signed by a key after it was retired: no word of ours.
        shared.metrics.reject("false_claim");
        tracing::warn!(
            %refusal,
            sequence = claim.checkpoint.sequence,
            "a client shows a checkpoint that does not count"
        );
        return Ok(());
    }
    tell(claim.clone());
    Err(Refused::new(
        Code::Internal,
        format!("this server forgot its own commit {}", claim.checkpoint.sequence),
    ))
}

/// What counts as signed by this server's publisher: the keys along our own chain, each for its
/// part of the history, and their successors that the client shows.
fn policy_of_publisher<E: Runtime>(
    shared: &Shared<E>,
    publisher: &PublicKey,
    hello: &Hello,
) -> Policy {
    let head = shared.ledger.head().checkpoint;
    let rotations = shared.config.rotations.clone();
    let first = rotations.0.first().map_or(publisher, |rotation| &rotation.retired);
    let publishers = vec![first.clone()];
    let mut policy = Policy { publishers, database: head.database, family: head.family, rotations };
    // Only what our keys signed is learned; a forged chain says nothing.
    let _ = policy.learn(&hello.rotations);
    policy
}

/// Whether `claim` is a state that our log should have and does not: beyond its newest record, or
/// another one than it. The log and not the head is asked: followers are sent a commit before
/// reads see it.
async fn is_unknown<E: Runtime>(shared: &Shared<E>, claim: &SignedCheckpoint) -> bool {
    let log = shared.ledger.log();
    let claimed = claim.checkpoint.sequence;
    loop {
        let last = log.bounds().last;
        if claimed != last {
            return claimed > last;
        }
        match log.read(last).await {
            Ok(commit) => return !commit.checkpoint.checkpoint.same_state(&claim.checkpoint),
            // Another record is the newest by now.
            Err(_) if log.bounds().last != last => {}
            Err(error) => {
                tracing::error!(%error, "cannot read the commit log");
                return false;
            }
        }
    }
}
