//! The `cloister-worker` binary; the program is in `cloister::worker`.
fn main() -> std::process::ExitCode {
    cloister::worker::main()
}
