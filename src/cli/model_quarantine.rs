//! `cloister model quarantine`: put a refused package where nothing is loaded from, list, take back.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use nix::unistd::getuid;
use serde_json::json;
use time::OffsetDateTime;

use super::model_checks::{CheckVerdict, Checks};
use super::model_explain::{show, word};
use super::model_package::ModelPackage;
use super::model_report::fail;
use super::{Outcome, Verdict, print, tell};
use crate::package::quarantine::{self, NOTE_FILE, Note};

/// Where packages are put unless `--folder` says otherwise: beside the model.
const FOLDER: &str = "quarantine";

/// Subcommands of `cloister model quarantine`.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Check a model, and move it with its signature into quarantine if it is refused.
    #[command(after_help = "Examples:\n  \
        cloister model quarantine add model.gguf.age --identity identity.txt\n  \
        cloister model quarantine add model.gguf --reason \"its maker withdrew it\"\n\n\
        A model that passes every check is moved only for a reason of yours. Exit code 0 when it was moved.")]
    Add(AddArguments),
    /// List what lies in quarantine, and why.
    #[command(after_help = "Examples:\n  \
        cloister model quarantine list --folder /srv/models/quarantine\n  \
        cloister model quarantine list --folder quarantine --json")]
    List(ListArguments),
    /// Move a package back to where it was, if it passes every check now.
    #[command(after_help = "Examples:\n  \
        cloister model quarantine release model.gguf.age --folder quarantine --identity identity.txt\n  \
        cloister model quarantine release model.gguf.age --folder quarantine --force")]
    Release(ReleaseArguments),
}

/// Arguments of `cloister model quarantine add`.
#[derive(Args, Debug)]
pub struct AddArguments {
    #[command(flatten)]
    package: ModelPackage,
    /// Where to put it, on the same file system [default: `quarantine` beside FILE].
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Why, in one sentence; needed for a model that passes every check.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `cloister model quarantine list`.
#[derive(Args, Debug)]
pub struct ListArguments {
    /// The quarantine.
    #[arg(long, value_name = "DIR", default_value = FOLDER)]
    folder: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `cloister model quarantine release`.
#[derive(Args, Debug)]
pub struct ReleaseArguments {
    /// The package, as `list` names it.
    name: String,
    /// The quarantine.
    #[arg(long, value_name = "DIR", default_value = FOLDER)]
    folder: PathBuf,
    /// Folder of public keys and roots (PEM) whose signatures count.
    #[arg(long, value_name = "DIR", default_value = "/etc/cloister/trust")]
    trust: PathBuf,
    /// age identity that opens an encrypted model.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Take it out although checks fail; the supervisor refuses it as before.
    #[arg(long)]
    force: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `cloister model quarantine`.
///
/// # Errors
///
/// Files that cannot be read or moved, a missing identity.
pub fn run(command: &Command) -> Outcome {
    match command {
        Command::Add(arguments) => add(arguments),
        Command::List(arguments) => list(arguments),
        Command::Release(arguments) => release(arguments),
    }
}

fn add(arguments: &AddArguments) -> Outcome {
    let package = &arguments.package;
    let checks = Checks::make(package, SystemTime::now());
    let reason = match (&arguments.reason, checks.reason()) {
        (Some(reason), _) => reason.clone(),
        (None, Some(reason)) => reason,
        (None, None) => {
            show(&package.file, &checks);
            return Err("no check fails: give a reason of yours with --reason TEXT".into());
        }
    };
    let signature = package.signature();
    let note = Note {
        file: std::path::absolute(&package.file)?,
        signature: match signature.symlink_metadata() {
            Ok(_) => Some(std::path::absolute(&signature)?),
            Err(_) => None,
        },
        time_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        uid: getuid().as_raw(),
        reason,
        checks: checks.noted(),
    };
    let folder = arguments.folder.clone().unwrap_or_else(|| package.file.with_file_name(FOLDER));
    let held = match quarantine::put(&folder, &note) {
        Ok(held) => held,
        Err(error) => {
            tell(
                "nothing was moved; the quarantine must be on the model's file system: --folder DIR",
            );
            return fail(&package.file, &error, arguments.json);
        }
    };
    if arguments.json {
        let mut report = checks.to_json();
        report["verdict"] = json!(word(checks.verdict()));
        report["held"] = json!(held);
        report["reason"] = json!(note.reason);
        print(&report.to_string());
    } else {
        show(&package.file, &checks);
        print(&format!("quarantined: {}", held.display()));
        print(&format!("  why: {}", note.reason.escape_debug()));
    }
    Ok(Verdict::Holds)
}

fn list(arguments: &ListArguments) -> Outcome {
    let held = quarantine::list(&arguments.folder)?;
    if arguments.json {
        let packages: Vec<_> = held
            .iter()
            .map(|held| match &held.note {
                Ok(note) => json!({ "name": held.name, "note": note }),
                Err(error) => json!({ "name": held.name, "error": error.to_string() }),
            })
            .collect();
        print(&json!({ "folder": arguments.folder, "packages": packages }).to_string());
        return Ok(Verdict::Holds);
    }
    if held.is_empty() {
        print(&format!("{}: nothing lies in quarantine", arguments.folder.display()));
    }
    for held in held {
        match held.note {
            Ok(note) => {
                let seconds = i64::try_from(note.time_s).unwrap_or(i64::MAX);
                let day = OffsetDateTime::from_unix_timestamp(seconds)
                    .map_or("?".to_owned(), |time| time.date().to_string());
                print(&format!("{}  since {day}, by uid {}", held.name, note.uid));
                print(&format!("  from {}", note.file.display()));
                print(&format!("  why  {}", note.reason.escape_debug()));
            }
            Err(error) => print(&format!("{}  {error}", held.name)),
        }
    }
    Ok(Verdict::Holds)
}

fn release(arguments: &ReleaseArguments) -> Outcome {
    let is_name = Path::new(&arguments.name).components().count() == 1
        && !["", ".", ".."].contains(&arguments.name.as_str());
    let folder = arguments.folder.join(&arguments.name);
    if !is_name || folder.join(NOTE_FILE).symlink_metadata().is_err() {
        let place = arguments.folder.display();
        return Err(format!("{place}: holds no {:?}; see: list", arguments.name).into());
    }
    let note = quarantine::read_note(&folder)?;
    let held = |path: &Path| folder.join(path.file_name().unwrap_or_default());
    let package = ModelPackage {
        file: held(&note.file),
        signature: note.signature.as_deref().map(held),
        trust: arguments.trust.clone(),
        identity: arguments.identity.clone(),
    };
    let mut checks = Checks::make(&package, SystemTime::now());
    // It lies in quarantine; the question is whether it needs to.
    checks.list.retain(|check| check.name != "quarantine");
    let verdict = checks.verdict();
    if verdict != CheckVerdict::Holds && !arguments.force {
        if arguments.json {
            let mut report = checks.to_json();
            report["verdict"] = json!(word(verdict));
            print(&report.to_string());
        } else {
            show(&package.file, &checks);
            tell("still in quarantine; to take it out all the same: --force");
        }
        return match verdict {
            CheckVerdict::Fails => Ok(Verdict::Refused),
            _ => Err("not every check could be made: see what is missing".into()),
        };
    }
    quarantine::release(&folder, &note)?;
    if arguments.json {
        print(&json!({ "released": note.file, "verdict": word(verdict) }).to_string());
    } else {
        print(&format!("released: {}", note.file.display()));
    }
    Ok(Verdict::Holds)
}
