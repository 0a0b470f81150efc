//! Files of evidence.
#![no_main]

use libfuzzer_sys::fuzz_target;
use syncd_verify::Evidence;

fuzz_target!(|data: &[u8]| {
    if let Ok(evidence) = Evidence::from_json(data) {
        let _ = evidence.verify(vec![evidence.known.publisher.clone()]);
    }
});
