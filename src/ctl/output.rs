//! Standard output. What cannot be written is a failure: a full disk, a reader that is gone.

use super::Failure;
use crate::exit;
use std::{fmt::Display, io::Write as _};

/// Writes a line.
pub fn print_line(text: impl Display) -> Result<(), Failure> {
    print_bytes(format!("{text}\n").as_bytes())
}

/// Writes bytes as they are.
pub fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    // At the end of the process, what is not flushed would be lost without a word.
    output
        .write_all(bytes)
        .and_then(|()| output.flush())
        .map_err(|error| Failure::new(exit::IO, format!("standard output: {error}")))
}
