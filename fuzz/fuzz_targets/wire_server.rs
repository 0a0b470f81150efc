//! What a server may send: replies and messages.
#![no_main]

use bytes::Bytes;
use commonware_codec::{DecodeExt as _, Encode as _};
use libfuzzer_sys::fuzz_target;
use syncd::wire::{Reply, ServerMessage};

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(reply) = Reply::decode(bytes.clone()) {
        assert_eq!(Reply::decode(reply.encode()).unwrap(), reply);
    }
    if let Ok(message) = ServerMessage::decode(bytes) {
        assert_eq!(ServerMessage::decode(message.encode()).unwrap(), message);
    }
});
