//! Arguments → run → exit code; the program is in the library.

fn main() -> std::process::ExitCode {
    syncd::server::main(std::env::args_os().collect())
}
