//! `cloister model`: a table of what can be done with model files.

use clap::Subcommand;

use super::{Outcome, model_inspect};

/// Subcommands of `cloister model`.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Say what a GGUF file contains, or why it is refused.
    Inspect(model_inspect::Arguments),
}

/// Runs `cloister model`.
///
/// # Errors
///
/// Those of the subcommand.
pub fn run(command: &Command) -> Outcome {
    match command {
        Command::Inspect(arguments) => model_inspect::run(arguments),
    }
}
