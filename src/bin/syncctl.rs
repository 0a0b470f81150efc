//! Arguments → run → exit code; the program is in the library.

fn main() -> std::process::ExitCode {
    syncd::ctl::main(std::env::args_os().collect())
}
