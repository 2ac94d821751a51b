//! `cloister model`: a table of what can be done with model files.

use clap::Subcommand;

use super::{
    Outcome, golden, model_distance, model_explain, model_inspect, model_quarantine, model_seal,
    model_sign, model_synth, model_verify,
};

/// Subcommands of `cloister model`.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Say what a GGUF file contains, or why it is refused.
    Inspect(model_inspect::Arguments),
    /// Sign a model file (OpenSSF Model Signing).
    Sign(model_sign::Arguments),
    /// Encrypt a model file (age).
    Seal(model_seal::Arguments),
    /// Check signature and encryption of a model file, without loading it.
    Verify(model_verify::Arguments),
    /// Say why a model is refused, check by check, and what to do.
    Explain(model_explain::Arguments),
    /// Put a refused model where nothing is loaded from, list what lies there, take it back.
    #[command(subcommand)]
    Quarantine(model_quarantine::Command),
    /// Hold the engine against golden lines.
    Golden(golden::Arguments),
    /// Measure the fast mode against the exact mode on a text.
    Distance(model_distance::Arguments),
    /// Write a model of a real shape with random weights, for timing.
    Synth(model_synth::Arguments),
}

/// Runs `cloister model`.
///
/// # Errors
///
/// Those of the subcommand.
pub fn run(command: &Command) -> Outcome {
    match command {
        Command::Inspect(arguments) => model_inspect::run(arguments),
        Command::Sign(arguments) => model_sign::run(arguments),
        Command::Seal(arguments) => model_seal::run(arguments),
        Command::Verify(arguments) => model_verify::run(arguments),
        Command::Explain(arguments) => model_explain::run(arguments),
        Command::Quarantine(command) => model_quarantine::run(command),
        Command::Golden(arguments) => golden::run(arguments),
        Command::Distance(arguments) => model_distance::run(arguments),
        Command::Synth(arguments) => model_synth::run(arguments),
    }
}
