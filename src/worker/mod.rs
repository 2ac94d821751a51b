//! The process that runs the engine; no network, no file, no key.
use std::process::ExitCode;

/// Runs the program. Under the name `loader` it is that child: the same file, another role.
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "loader") {
        return crate::loader::main();
    }
    ExitCode::from(2)
}
