//! Exit codes, after sysexits.h.

/// Ended in order.
pub const OK: u8 = 0;
/// The command line is wrong.
pub const USAGE: u8 = 64;
/// Data are damaged, or belong to another database.
pub const DATA: u8 = 65;
/// A fault of this program.
pub const INTERNAL: u8 = 70;
/// Input or output failed: a disk, a port in use.
pub const IO: u8 = 74;
/// Try again later: locked by another process, not reached in time.
pub const TEMPORARY: u8 = 75;
/// The reader of standard output closed it, as programs of the shell say it: 128 and the number of SIGPIPE.
pub const PIPE: u8 = 141;
