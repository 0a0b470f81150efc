//! What a client may send: greetings and messages.
#![no_main]

use bytes::Bytes;
use commonware_codec::{DecodeExt as _, Encode as _};
use libfuzzer_sys::fuzz_target;
use syncd::wire::{ClientMessage, Hello, Versions};

fuzz_target!(|data: &[u8]| {
    let _ = Versions::peek(data);
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(hello) = Hello::decode(bytes.clone()) {
        assert_eq!(Hello::decode(hello.encode()).unwrap(), hello);
    }
    if let Ok(message) = ClientMessage::decode(bytes) {
        assert_eq!(ClientMessage::decode(message.encode()).unwrap(), message);
    }
});
