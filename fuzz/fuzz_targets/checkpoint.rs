//! Signed checkpoints, rotations of keys and identities: no byte of them is free.
#![no_main]

use bytes::Bytes;
use commonware_codec::{DecodeExt as _, Encode as _};
use libfuzzer_sys::fuzz_target;
use syncd::checkpoint::{Parameters, Policy, Rotation, Rotations, SignedCheckpoint};

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(signed) = SignedCheckpoint::decode(bytes.clone()) {
        assert_eq!(signed.encode().as_ref(), data);
        let checkpoint = &signed.checkpoint;
        let policy = Policy {
            publishers: vec![signed.publisher.clone()],
            database: checkpoint.database,
            family: checkpoint.family,
            rotations: Rotations::default(),
        };
        assert_eq!(policy.verify(&signed).is_ok(), signed.signature_is_valid());
    }
    if let Ok(rotation) = Rotation::decode(bytes.clone()) {
        assert_eq!(rotation.encode().as_ref(), data);
        let _ = rotation.signatures_are_valid();
    }
    if let Ok(rotations) = Rotations::decode(bytes.clone()) {
        assert_eq!(rotations.encode().as_ref(), data);
    }
    if let Ok(parameters) = Parameters::decode(bytes) {
        assert_eq!(parameters.encode().as_ref(), data);
        let _ = parameters.identity();
    }
});
