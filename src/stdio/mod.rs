//! Standard output and standard error, for both daemons and `syncctl`.
//!
//! `println!` and `eprintln!` panic where a stream cannot be written, and wait where its reader stalls. Nothing here
//! does: what cannot be written to standard output is an error with an exit code, what cannot be written to standard
//! error is dropped, and a daemon's standard error is a [bounded queue](queue) behind which nobody waits.

pub mod queue;

use crate::exit;
use std::{
    fmt::Display,
    io::{self, ErrorKind, Write as _},
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    process::ExitCode,
};

/// Writes bytes to standard output as they are.
pub fn print(bytes: &[u8]) -> io::Result<()> {
    let mut output = io::stdout().lock();
    // At the end of the process, what is not flushed would be lost without a word.
    output.write_all(bytes).and_then(|()| output.flush())
}

/// The exit code for output that could not be written. A reader that closed the pipe has all that it wanted: that end
/// is quiet.
pub fn exit_code(error: &io::Error) -> u8 {
    if error.kind() == ErrorKind::BrokenPipe { exit::PIPE } else { exit::IO }
}

/// Writes a line to standard error. One that cannot be written changes nothing; in a daemon none is waited for.
pub fn note(text: impl Display) {
    let line = format!("{text}\n");
    match queue::started() {
        Some(queue) => queue.push(line.as_bytes()),
        None => {
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }
}

/// Waits, for a bounded time, until what was noted is written. The last thing that a process does.
pub fn flush() {
    if let Some(queue) = queue::started() {
        queue.flush(queue::FLUSH_TIMEOUT);
    }
}

/// Runs a program named `name`. A panic anywhere is one line on standard error, and on this thread
/// [`exit::INTERNAL`].
pub fn run(name: &'static str, program: impl FnOnce() -> ExitCode) -> ExitCode {
    panic::set_hook(Box::new(move |panic| note(describe(name, panic))));
    let code = panic::catch_unwind(AssertUnwindSafe(program));
    flush();
    code.unwrap_or_else(|_| exit::INTERNAL.into())
}

/// A panic on one line.
fn describe(name: &str, panic: &PanicHookInfo<'_>) -> String {
    let message = panic.payload_as_str().unwrap_or("no message");
    let message: Vec<&str> = message.split_whitespace().collect();
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    format!("{name}: internal error at {place} (thread {thread}): {}", message.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_quiet_and_a_full_disk_is_not() {
        assert_eq!(exit_code(&ErrorKind::BrokenPipe.into()), exit::PIPE);
        assert_eq!(exit_code(&ErrorKind::StorageFull.into()), exit::IO);
    }
}
