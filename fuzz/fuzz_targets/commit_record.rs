//! Records of the commit log, from disk or from the wire.
#![no_main]

use bytes::Bytes;
use commonware_codec::{DecodeExt as _, Encode as _};
use libfuzzer_sys::fuzz_target;
use syncd::commit_log::Commit;

fuzz_target!(|data: &[u8]| {
    if let Ok(commit) = Commit::decode(Bytes::copy_from_slice(data)) {
        let encoded = commit.encode();
        assert_eq!(encoded.as_ref(), data, "an encoding is the only one of its record");
        let _ = (commit.sequence(), commit.state(), commit.metadata(), commit.kind());
    }
});
