//! The `cloister-supervisor` binary; the program is in `cloister::supervisor`.
fn main() -> std::process::ExitCode {
    cloister::supervisor::main()
}
