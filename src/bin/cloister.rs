//! The `cloister` binary; the program is in `cloister::cli`.
fn main() -> std::process::ExitCode {
    cloister::cli::main()
}
