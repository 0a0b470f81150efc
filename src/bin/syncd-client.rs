//! Arguments → run → exit code; the program is in the library.

fn main() -> std::process::ExitCode {
    syncd::client::main(std::env::args_os().collect())
}
