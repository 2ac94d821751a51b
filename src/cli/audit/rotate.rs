//! `cloister audit rotate-wrapping-key`: replaces a key of the running supervisor, and its file.
//!
//! The new key is written beside the old one before anything else, and takes its place when it is in
//! force; a command that was interrupted is finished by giving it again.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use crate::audit::{WrappingKey, principal_keys};
use crate::cli::status::{explain, is_absent, read_config};
use crate::cli::{Outcome, Verdict, print, tell};
use crate::package::files::{Overwrite, open_regular, read_small, write_new};
use crate::supervisor::config::{self, Config};
use crate::supervisor::control::{Command, ask};

/// Longest file of a private key, in bytes.
pub(super) const KEY_LEN_MAX_BYTES: u64 = 64 << 10;

/// What can go wrong, in words.
pub(super) type Fault = Box<dyn std::error::Error>;

/// Arguments of `cloister audit rotate-wrapping-key`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  cloister audit rotate-wrapping-key\n  \
    cloister keygen wrapping --out new.key && cloister audit rotate-wrapping-key --new new.key\n\n\
    Do it after an erasure that could not, and whenever backups of the principals' keys must become useless: the \
    running supervisor wraps all of them anew, and the old wrapping key is overwritten and removed. A \
    wrapping key that is a credential (keys.wrapping = \"credential:NAME\") is replaced with --new: \
    store the file as that credential afterwards, and destroy the old one.\n\n\
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

/// Runs `cloister audit rotate-wrapping-key`.
///
/// # Errors
///
/// A file that cannot be read or written; no supervisor.
pub fn run_wrapping(arguments: &Arguments) -> Outcome {
    let config = read_config(&arguments.config)?;
    let answer = match replace(&config, arguments.new.as_deref())? {
        Replaced::Done(answer) => answer,
        Replaced::Refused(why) => {
            tell(&format!("refused: {why}"));
            return Ok(Verdict::Refused);
        }
    };
    if arguments.json {
        print(&answer.to_string());
    } else {
        let count = answer["count"].as_u64().unwrap_or(0);
        print(&format!("rotated: {count} principals' keys are wrapped under the new key"));
        if arguments.new.is_some() {
            print("  store it as the credential that keys.wrapping names, and destroy the old one");
        }
    }
    Ok(Verdict::Holds)
}

/// How a replacement ended.
pub(super) enum Replaced {
    /// It is in force; the supervisor's answer.
    Done(Value),
    /// Nothing has changed, and why.
    Refused(String),
}

/// Has the principals' keys wrapped under the key in `new`, or under a fresh one whose file then takes
/// the old one's place.
pub(super) fn replace(config: &Config, new: Option<&Path>) -> Result<Replaced, Fault> {
    let path = &config.keys.wrapping;
    let fresh = match new {
        Some(file) => file.to_owned(),
        None => make(path, || Ok(WrappingKey::generate()?.expose().to_vec()))?,
    };
    let file = open_regular(&fresh)?;
    let answer = ask(&config.control_socket, Command::RotateWrappingKey {}, &[file.as_fd()]);
    let answer = match answer {
        Err(error) if is_absent(&error) && is_wrapped_under(config, &fresh)? => Value::Null,
        answer => answer.map_err(|error| explain(&config.control_socket, &error))?,
    };
    if answer["ok"] == false {
        let why = answer["error"].as_str().unwrap_or("no reason was given");
        let stays = fresh.display();
        return Ok(Replaced::Refused(format!("{why}; the new key stays in {stays}")));
    }
    if new.is_none() {
        put_in_place(&fresh, path)?;
    }
    Ok(Replaced::Done(answer))
}

/// Writes a fresh key beside the one in force, unless an interrupted command has left one.
pub(super) fn make(
    path: &Path,
    text: impl Fn() -> Result<Vec<u8>, Fault>,
) -> Result<PathBuf, Fault> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let fresh = PathBuf::from(name);
    if !fresh.exists() {
        let text = zeroize::Zeroizing::new(text()?);
        let written = write_new(&fresh, 0o600, Overwrite::No, &text);
        written
            .map_err(|error| format!("{error}; make the key elsewhere and name it with --new"))?;
    }
    Ok(fresh)
}

/// Whether the principals' keys are under this key already: the supervisor ended before its answer.
fn is_wrapped_under(config: &Config, file: &Path) -> Result<bool, Fault> {
    let key = WrappingKey::parse(&read_small(file, "wrapping key", KEY_LEN_MAX_BYTES)?)?;
    let current = principal_keys::current(&config.principals_folder())?;
    Ok(current.is_some_and(|id| id == key.id()))
}

/// Gives the new key the old one's owner and name, and overwrites the old one.
pub(super) fn put_in_place(fresh: &Path, path: &Path) -> Result<(), Fault> {
    let fault = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut old = OpenOptions::new().write(true).open(path).map_err(fault)?;
    let found = old.metadata().map_err(fault)?;
    let len = found.len();
    // A service of another user than who gives the command reads it at its next start.
    chown(fresh, Some(found.uid()), Some(found.gid())).map_err(fault)?;
    fs::rename(fresh, path).map_err(fault)?;
    old.write_all(&vec![0; usize::try_from(len).unwrap_or(0)]).map_err(fault)?;
    old.sync_all().map_err(fault)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fault)?;
    Ok(())
}
