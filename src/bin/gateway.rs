//! The `cloister-gateway` binary; the program is in `cloister::gateway`.
fn main() -> std::process::ExitCode {
    cloister::gateway::main()
}
