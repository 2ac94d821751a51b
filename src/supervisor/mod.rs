//! Keys, audit log, tickets, children; no async runtime; never sees content.
use std::process::ExitCode;

pub mod config;
pub mod control;
mod children;
mod dispatch;
mod ledger;
mod opening;
mod records;
mod refusals;
pub mod secret_file;
mod table;
mod tls;
pub mod tokens;

/// Runs the program.
pub fn main() -> ExitCode {
    ExitCode::from(2)
}
