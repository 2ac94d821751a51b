//! `cloister audit rotate-key`: the running supervisor lets another key sign the log, and the key's files
//! take the old ones' place.
//!
//! The new key is written beside the old one before anything else; a command that was interrupted is
//! finished by giving it again, also when the supervisor does not run any more.

use std::os::fd::AsFd as _;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::rotate::{Fault, KEY_LEN_MAX_BYTES, make, put_in_place};
use crate::audit::Signer;
use crate::cli::status::{explain, is_absent, read_config};
use crate::cli::{Outcome, Verdict, print, tell};
use crate::package::files::{Overwrite, open_regular, read_small, write_new};
use crate::package::keys::generate_ed25519;
use crate::supervisor::config::{self, Config};
use crate::supervisor::control::{Command, ask};

/// Arguments of `cloister audit rotate-key`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  cloister audit rotate-key\n  \
    cloister keygen audit --name clinic-7.example/audit --out new.pem && cloister audit rotate-key --new new.pem\n\n\
    The change is a record, and both keys sign a checkpoint over it, kept in LOG/rotation: who has the \
    old public key learns the new one from it (cloister audit verify prints it), who has the new one \
    verifies the whole log. The old private key is overwritten; it can sign nothing for this log that a \
    holder of the new public key takes. A key that is a credential (keys.audit = \"credential:NAME\") is \
    replaced with --new: store the file as that credential afterwards, and destroy the old one.\n\n\
    Do it when the key may have been seen, and give the new public key to auditors and witnesses: who \
    knows nothing newer than the old key can be shown another log by a thief of it.\n\n\
    Exit code 0 when it is done, 1 when it is refused, 2 when there is no supervisor or a file cannot \
    be written.")]
pub struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
    /// The new key, already made; its file stays where it is.
    #[arg(long, value_name = "FILE")]
    new: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `cloister audit rotate-key`.
///
/// # Errors
///
/// A file that cannot be read or written; no supervisor.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    let config = read_config(&arguments.config)?;
    let path = &config.keys.audit;
    let fresh = match &arguments.new {
        Some(file) => file.clone(),
        None => make(path, || Ok(generate_ed25519()?.expose().to_vec()))?,
    };
    let fault = |error: &dyn std::fmt::Display| format!("{}: {error}", fresh.display());
    let pem = read_small(&fresh, "audit key", KEY_LEN_MAX_BYTES)?;
    let signer = Signer::from_pem(&config.audit_origin, &pem).map_err(|error| fault(&error))?;
    let key = signer.verifier().newest();
    let file = open_regular(&fresh)?;
    let answer = match ask(&config.control_socket, Command::RotateAuditKey {}, &[file.as_fd()]) {
        Err(error) if is_absent(&error) && is_in_force(&config, &signer)? => json!({ "ok": true }),
        answer => answer.map_err(|error| explain(&config.control_socket, &error))?,
    };
    if answer["ok"] == false {
        let why = answer["error"].as_str().unwrap_or("no reason was given");
        tell(&format!("refused: {why}; the new key stays in {}", fresh.display()));
        return Ok(Verdict::Refused);
    }
    let public = path.with_extension("vkey");
    let is_beside = arguments.new.is_none();
    if is_beside {
        put_in_place(&fresh, path)?;
        write_new(&public, 0o644, Overwrite::Force, format!("{key}\n").as_bytes())?;
    }
    if arguments.json {
        print(&json!({ "key": key, "size": answer["size"] }).to_string());
        return Ok(Verdict::Holds);
    }
    match &answer["size"] {
        Value::Null => print("rotated: the new key signs the log"),
        size => {
            print(&format!("rotated: the new key signs the log, the old one up to {size} records"))
        }
    }
    print(&format!("  public    {key}"));
    match is_beside {
        true => print(&format!(
            "  it stands in {}; give it to auditors and witnesses",
            public.display()
        )),
        false => {
            print("  store it as the credential that keys.audit names, and destroy the old one")
        }
    }
    Ok(Verdict::Holds)
}

/// Whether the log has handed over to this key already: the supervisor ended before its answer.
fn is_in_force(config: &Config, signer: &Signer) -> Result<bool, Fault> {
    let given = signer.verifier();
    let followed = given.follow(&config.audit_folder);
    let is_last = |it: &crate::audit::Verifier| {
        it.changes().last().is_some_and(|change| change.after.is_newest_of(&given))
    };
    Ok(followed.as_ref().is_ok_and(is_last))
}
