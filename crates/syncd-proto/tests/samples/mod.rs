//! A record of each kind, for tests of decoders and as what fuzzing begins with.

use bytes::Bytes;
use commonware_codec::{DecodeExt as _, FixedSize as _};
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use syncd_proto::{
    checkpoint::{Checkpoint, Rotation, Rotations, SignedCheckpoint},
    commit::{Base, Commit, IdempotencyEntry},
    database::{EXECUTION_VERSION, Fetch},
    trace::TraceContext,
    types::{Change, Digest, Family, HashKind, Mode},
    wire::{Extensions, Hello, Request},
};

pub fn checkpoint(sequence: u64) -> SignedCheckpoint {
    Checkpoint {
        database: Digest([1; 32]),
        family: Family::Any,
        hash: HashKind::Blake3,
        sequence,
        floor: 3,
        size: 10,
        root: Digest([2; 32]),
        operations_root: Digest([2; 32]),
        committed_at_ms: 1_700_000_000_000,
        signed_at_ms: 1_700_000_000_001,
    }
    .sign(&PrivateKey::from_seed(7))
}

pub fn trace() -> TraceContext {
    TraceContext::decode(Bytes::from_static(&[7; TraceContext::SIZE])).unwrap()
}

pub fn commit() -> Commit {
    Commit {
        base: Base { size: 4, root: Digest([9; 32]) },
        execution: EXECUTION_VERSION,
        changes: vec![
            Change::Put { key: b"k".to_vec(), value: vec![0, 255] },
            Change::Delete { key: b"gone".to_vec() },
        ],
        idempotency: vec![IdempotencyEntry { key: b"once".to_vec(), body: Digest([5; 32]) }],
        checkpoint: checkpoint(8),
    }
}

pub fn rotation() -> Rotation {
    let [old, new] = [7, 8].map(PrivateKey::from_seed);
    Rotation::new(Digest([1; 32]), 9, &old, &new)
}

/// The first message of a replica.
pub fn hello() -> Hello {
    Hello {
        newest: Some(checkpoint(8)),
        rotations: Rotations(vec![rotation()]),
        extensions: Extensions(vec![(9, b"later".to_vec())]),
        ..Hello::new(Family::Any, Mode::Full, Some(Digest([1; 32])))
    }
}

/// One of each kind.
pub fn requests() -> [Request; 6] {
    let max = std::num::NonZeroU64::new(5).unwrap();
    [
        Request::Checkpoint,
        Request::Fetch(Fetch::Operations { size: 9, start: 3, max }),
        Request::Fetch(Fetch::Boundary { size: 9, start: 3 }),
        Request::Follow { sequence: 4, credit: 5 },
        Request::Watch { target: 6 },
        Request::CheckpointAt { sequence: 7 },
    ]
}
