//! The network-facing process: TLS, HTTP, limits, streaming; holds no weights and no key.
use std::process::ExitCode;

/// Runs the program.
pub fn main() -> ExitCode {
    ExitCode::from(2)
}
