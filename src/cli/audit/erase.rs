//! `cloister audit erase`: destroys a principal's key, so that nothing in the log can be linked to it,
//! and makes older copies of it useless.

use clap::Args;

use super::rotate::{Replaced, replace};
use crate::cli::status::{Supervisor, explain, read_config};
use crate::cli::{Outcome, Verdict, print, tell};
use crate::supervisor::control::{Command, ask};

/// Arguments of `cloister audit erase`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  cloister audit erase --principal alice --yes\n  \
    cloister audit erase --principal alice --yes --socket /run/cloister/control.sock\n\n\
    The principal is an API token's name, not a person whom its texts are about: what was said of a \
    patient is erased with the principals who sent it.\n\n\
    The key is destroyed for ever. The log stays whole and verifies; its digests of that principal's \
    texts are found by nobody any more, and a tombstone says so. The wrapping key is replaced at once, so \
    that copies of the principals' keys from before are useless, those of other principals too: make a \
    new backup of them. Where that cannot be done here (keys.wrapping is a credential, or who asks is not \
    root), the command says so, and copies stay useful until cloister audit rotate-wrapping-key.\n\n\
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
    /// Keep the wrapping key: copies of the destroyed key stay useful until it is replaced.
    #[arg(long)]
    keep_wrapping_key: bool,
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
    let mut answer = ask(&socket, command, &[]).map_err(|error| explain(&socket, &error))?;
    let kept = (answer["erased"] == true).then(|| replace_wrapping_key(arguments).err());
    if let Some(kept) = &kept {
        answer["wrapping_key_replaced"] = kept.is_none().into();
    }
    if arguments.json {
        print(&answer.to_string());
    }
    if answer["ok"] != true {
        tell(&format!("refused: {}", answer["error"].as_str().unwrap_or("no reason was given")));
        return Ok(Verdict::Refused);
    }
    if !arguments.json {
        print(&match answer["pseudonym"].as_str() {
            Some(pseudonym) => format!("erased: the key of {pseudonym} is destroyed"),
            None => format!(
                "asked: {} of {} users; the others must ask within {} s",
                answer["confirmations"], answer["needed"], answer["within_s"],
            ),
        });
        if let Some(None) = kept {
            print(
                "  the wrapping key is replaced: copies of the principals' keys from before are \
                 useless; make a new backup of them",
            );
        }
    }
    if let Some(Some(why)) = kept {
        tell(&format!(
            "cloister: the wrapping key was not replaced ({why}): with it, a copy of the destroyed key \
             is still one; have root give `cloister audit rotate-wrapping-key`"
        ));
    }
    Ok(Verdict::Holds)
}

/// Makes older copies of the principals' keys useless, or says why they are not.
fn replace_wrapping_key(arguments: &Arguments) -> Result<(), String> {
    if arguments.keep_wrapping_key {
        return Err("--keep-wrapping-key was given".to_owned());
    }
    if arguments.supervisor.socket.is_some() {
        return Err("--socket says no configuration that names it".to_owned());
    }
    let config = read_config(&arguments.supervisor.config).map_err(|error| error.to_string())?;
    match replace(&config, None) {
        Ok(Replaced::Done(_)) => Ok(()),
        Ok(Replaced::Refused(why)) => Err(why),
        Err(error) => Err(error.to_string()),
    }
}
