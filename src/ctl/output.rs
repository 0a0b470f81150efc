//! Standard output. What cannot be written is a failure: a full disk, a reader that is gone.

use super::Failure;
use crate::{exit, stdio};
use std::fmt::Display;

/// Writes a line.
pub(super) fn print_line(text: impl Display) -> Result<(), Failure> {
    print_bytes(format!("{text}\n").as_bytes())
}

/// Writes bytes as they are.
pub(super) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    stdio::print(bytes).map_err(|error| failure(&error))
}

/// What an error of standard output means. One that says nothing is a pipe whose reader closed it.
pub(super) fn failure(error: &std::io::Error) -> Failure {
    match stdio::exit_code(error) {
        exit::PIPE => Failure::new(exit::PIPE, ""),
        code => Failure::new(code, format!("standard output: {error}")),
    }
}
