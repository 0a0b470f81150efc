//! Files with keys, lists of keys and identities.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use syncd::keys;

fuzz_target!(|text: &str| {
    let path = Path::new("fuzz");
    let _ = keys::private_from_text(path, text);
    let _ = keys::public_from_text(text);
    if let Ok(keys) = keys::authorized_from_text(path, text) {
        assert!(keys.len() <= text.lines().count());
    }
});
