//! `cloister audit erase`: destroys a principal's key, so that nothing in the log can be linked to it.

use clap::Args;

use crate::cli::status::{Supervisor, explain};
use crate::cli::{Outcome, Verdict, print, tell};
use crate::supervisor::control::{Command, ask};

/// Arguments of `cloister audit erase`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  cloister audit erase --principal alice --yes\n  \
    cloister audit erase --principal alice --yes --socket /run/cloister/control.sock\n\n\
    The principal is an API token's name, not a person whom its texts are about: what was said of a \
    patient is erased with the principals who sent it.\n\n\
    The key is destroyed for ever. The log stays whole and verifies; its digests of that principal's \
    texts are found by nobody any more, and a tombstone says so. Copies of the key in backups stay \
    useful until the wrapping key is replaced: cloister audit rotate-wrapping-key.\n\n\
    With audit.erase_confirmations = 2, this command only asks; another user of the machine must give \
    it too within an hour.\n\n\
    Exit code 0 when the key is destroyed or more users must ask, 1 when it is refused, 2 when there is \
    no supervisor.")]
pub struct Arguments {
    /// The API token's name.
    #[arg(long, value_name = "NAME")]
    principal: String,
    /// Do it: it cannot be undone.
    #[arg(long, required = true)]
    yes: bool,
    #[command(flatten)]
    supervisor: Supervisor,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `cloister audit erase`.
///
/// # Errors
///
/// No supervisor.
pub fn run(arguments: &Arguments) -> Outcome {
    let socket = arguments.supervisor.socket()?;
    let command = Command::Erase { principal: arguments.principal.clone() };
    let answer = ask(&socket, command, &[]).map_err(|error| explain(&socket, &error))?;
    if arguments.json {
        print(&answer.to_string());
    }
    let verdict = if answer["ok"] == true { Verdict::Holds } else { Verdict::Refused };
    if verdict == Verdict::Refused {
        tell(&format!("refused: {}", answer["error"].as_str().unwrap_or("no reason was given")));
    } else if !arguments.json {
        print(&match answer["pseudonym"].as_str() {
            Some(pseudonym) => format!("erased: the key of {pseudonym} is destroyed"),
            None => format!(
                "asked: {} of {} users; the others must ask within {} s",
                answer["confirmations"], answer["needed"], answer["within_s"],
            ),
        });
    }
    Ok(verdict)
}
