//! `cloister model seal`: encrypt a model file.

use std::path::{Path, PathBuf};

use clap::Args;

use super::model_report::{fail, progress_bar, with_suffix};
use super::{Outcome, Verdict, print};
use crate::package::files::{NewFile, Overwrite, open_regular};
use crate::package::seal::{WRITE, parse_recipient, seal};
use crate::package::{Error, quarantine};

/// Arguments of `cloister model seal`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    cloister model seal model.gguf --recipient age1...\n  \
    age -d -i identity.txt model.gguf.age > model.gguf")]
pub struct Arguments {
    /// The model, not encrypted. Sign it first: a signature is over the plaintext.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Who may open it; may be given several times.
    #[arg(long, value_name = "age1...", required = true)]
    recipient: Vec<String>,
    /// Where the encrypted file goes [default: FILE.age].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace an existing file.
    #[arg(long)]
    force: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `cloister model seal`.
///
/// # Errors
///
/// A file that cannot be read or written, a recipient that is not X25519.
pub fn run(arguments: &Arguments) -> Outcome {
    let out = arguments.out.clone().unwrap_or_else(|| with_suffix(&arguments.file, ".age"));
    match seal_file(arguments, &out) {
        Ok(len_bytes) => {
            if arguments.json {
                let report = serde_json::json!({
                    "file": arguments.file, "sealed": out, "len_bytes": len_bytes,
                    "recipients": arguments.recipient,
                });
                print(&report.to_string());
            } else {
                let (from, to) = (arguments.file.display(), out.display());
                print(&format!("sealed {from}: {to} ({len_bytes} bytes of plaintext)"));
            }
            Ok(Verdict::Holds)
        }
        Err(error) => fail(&arguments.file, &error, arguments.json),
    }
}

fn seal_file(arguments: &Arguments, out: &Path) -> Result<u64, Error> {
    let recipients = arguments.recipient.iter().map(|text| parse_recipient(text));
    let recipients = recipients.collect::<Result<Vec<_>, _>>()?;
    quarantine::check(&arguments.file)?;
    let mut file = open_regular(&arguments.file)?;
    let overwrite = if arguments.force { Overwrite::Force } else { Overwrite::No };
    let mut sealed = NewFile::create(out, 0o644, overwrite)?;
    let bar = progress_bar("sealing", file.metadata().map_or(0, |metadata| metadata.len()));
    let outcome = seal(&recipients, &mut file, &mut sealed, &mut |n| bar.set_position(n));
    bar.finish_and_clear();
    let len_bytes = outcome.map_err(|error| match error {
        Error::Stream { action: WRITE, source } => {
            Error::Io { action: "write", path: out.to_owned(), source }
        }
        error => error,
    })?;
    sealed.finish()?;
    Ok(len_bytes)
}
