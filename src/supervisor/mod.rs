//! Keys, audit log, tickets, children; no async runtime; never sees content.
use std::process::ExitCode;

/// Runs the program.
pub fn main() -> ExitCode {
    ExitCode::from(2)
}
