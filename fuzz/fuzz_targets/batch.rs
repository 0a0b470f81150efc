//! Bodies of `POST /v1/batch`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use syncd::{api::ndjson, database::types::KEY_LENGTH_MAX};

fuzz_target!(|data: &[u8]| {
    if let Ok(changes) = ndjson::parse(data, 1000, false) {
        for change in changes {
            assert!(change.key().is_some_and(|key| (1..=KEY_LENGTH_MAX).contains(&key.len())));
        }
    }
    if let Ok(changes) = ndjson::parse(data, 1000, true) {
        assert!(changes.iter().all(|change| change.key().is_none()));
    }
});
