//! What comes over the wire and from disk is hostile: decoders refuse, and never panic.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

mod samples;

use bytes::Bytes;
use commonware_codec::{DecodeExt as _, Encode as _};
use commonware_cryptography::{Hasher as _, Sha256};
use proptest::prelude::*;
use samples::{checkpoint, commit, hello, requests, rotation, trace};
use std::time::Duration;
use syncd_proto::{
    checkpoint::{Rotations, SignedCheckpoint, rotation::ROTATIONS_MAX},
    commit::Commit,
    wire::{
        CLIENT_MESSAGE_BYTES_MAX, ClientMessage, Code, EXTENSION_BYTES_MAX, EXTENSIONS_MAX,
        Extensions, Features, Hello, Refused, Reply, Response, ServerMessage, Versions,
    },
};

/// Formats are a promise: a change of one shows here, and needs a new version.
#[test]
fn formats_are_pinned() {
    let pinned = |bytes: &Bytes| hex::encode(&Sha256::hash(&[bytes]).as_ref()[..8]);
    let found = [
        pinned(&checkpoint(8).encode()),
        pinned(&commit().encode()),
        pinned(&hello().encode()),
        pinned(&rotation().encode()),
    ];
    assert_eq!(found, PINNED);
}

const PINNED: [&str; 4] =
    ["71aba308a8a54f76", "31cfd95eba5f9ec1", "a9000758093b7129", "a519566191c238cc"];

#[test]
fn what_is_encoded_is_decoded() {
    assert_eq!(Commit::decode(commit().encode()).unwrap(), commit());
    for request in requests() {
        let message = ClientMessage::Request { id: 7, trace: Some(trace()), request };
        assert_eq!(ClientMessage::decode(message.encode()).unwrap(), message);
    }
    for response in [
        Response::Checkpoint(Box::new(checkpoint(1))),
        Response::Operations(Bytes::from_static(b"abc")),
        Response::Commit { commit: Box::new(commit()), trace: Some(trace()) },
        Response::Refused(Refused::new(syncd_proto::wire::Code::Pruned, "gone")),
    ] {
        let message = ServerMessage::Response { id: 7, response };
        assert_eq!(ServerMessage::decode(message.encode()).unwrap(), message);
    }
}

/// No byte of a signed checkpoint can change without the signature noticing.
#[test]
fn every_bit_of_a_checkpoint_is_signed() {
    let bytes = checkpoint(8).encode().to_vec();
    for at in 0..bytes.len() {
        let mut wrong = bytes.clone();
        wrong[at] ^= 1;
        let valid = SignedCheckpoint::decode(Bytes::from(wrong))
            .is_ok_and(|signed| signed.signature_is_valid());
        assert!(!valid, "byte {at}");
    }
    assert!(checkpoint(8).signature_is_valid());
}

proptest! {
    #[test]
    fn random_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let bytes = Bytes::from(bytes);
        let _ = SignedCheckpoint::decode(bytes.clone());
        let _ = Commit::decode(bytes.clone());
        let _ = Hello::decode(bytes.clone());
        let _ = Reply::decode(bytes.clone());
        let _ = ClientMessage::decode(bytes.clone());
        let _ = ServerMessage::decode(bytes);
    }

    #[test]
    fn a_damaged_commit_is_refused_or_another_one(at in 0usize..400, flip in 1u8..=255) {
        let mut bytes = commit().encode().to_vec();
        let at = at % bytes.len();
        bytes[at] ^= flip;
        if let Ok(decoded) = Commit::decode(Bytes::from(bytes)) {
            prop_assert_ne!(decoded, commit());
        }
    }
}

/// What greetings begin with is the same in every version, so that each can say why it does not understand another.
#[test]
fn the_greeting_begins_as_it_always_did() {
    let greeting = hello().encode();
    assert_eq!(hex::encode(&greeting[..12]), "000500050000000000000000");
    let later = hex::decode("00060009ffffffffffffffff6e6f626f6479206b6e6f7773").unwrap();
    assert_eq!(Versions::peek(&later), Some(Versions { oldest: 6, newest: 9 }));
    assert_eq!(Versions::peek(&later[..3]), None);
    // Of a reply, the kind, and of a refusal all.
    let refused = Refused::later(Code::UnsupportedVersion, "no", Duration::from_millis(258));
    let reply = Reply::Refused(refused).encode();
    assert_eq!(hex::encode(reply), "0104026e6f0000000000000102");
}

/// A version that knows more says more, and is understood.
#[test]
fn unknown_extensions_are_skipped() {
    let mut hello = hello();
    hello.extensions = Extensions(vec![(0xffff, vec![7; EXTENSION_BYTES_MAX]); EXTENSIONS_MAX]);
    hello.features = Features(u64::MAX);
    assert_eq!(Hello::decode(hello.encode()).unwrap(), hello);
    // The largest greeting is not larger than a server reads.
    hello.rotations = Rotations(vec![rotation(); ROTATIONS_MAX]);
    assert!(hello.encode().len() <= CLIENT_MESSAGE_BYTES_MAX, "{}", hello.encode().len());
    hello.extensions.0.push((1, Vec::new()));
    assert!(Hello::decode(hello.encode()).is_err());
    hello.extensions = Extensions(vec![(1, vec![7; EXTENSION_BYTES_MAX + 1])]);
    assert!(Hello::decode(hello.encode()).is_err());
}
