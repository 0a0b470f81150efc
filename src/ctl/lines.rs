//! Lines of NDJSON, of bounded length.

use std::io::{BufRead, Error, ErrorKind, Read as _, Result};

/// Longest line that is read: more than the largest key and value can take.
pub(super) const LINE_BYTES_MAX: usize = crate::wire::COMMIT_BYTES_MAX;

/// Reads a line with its end into `line`, which is emptied before. `false` means that there is none.
/// A line that is too long is [`ErrorKind::InvalidData`].
pub(super) fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> Result<bool> {
    line.clear();
    input.take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', line)?;
    if line.len() > LINE_BYTES_MAX {
        let text = format!("a line is longer than {LINE_BYTES_MAX} bytes");
        return Err(Error::new(ErrorKind::InvalidData, text));
    }
    Ok(!line.is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded() {
        let mut line = Vec::new();
        let mut input = &b"a\n\nb"[..];
        for expected in ["a\n", "\n", "b"] {
            assert!(read_line(&mut input, &mut line).unwrap());
            assert_eq!(line, expected.as_bytes());
        }
        assert!(!read_line(&mut input, &mut line).unwrap());
        let endless = std::io::repeat(b'x');
        let error = read_line(&mut std::io::BufReader::new(endless), &mut line).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}
