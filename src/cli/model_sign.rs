//! `cloister model sign`: vouch for a model file.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

use super::model_report::{Counted, fail, progress_bar, with_suffix};
use super::{Outcome, Verdict, print};
use crate::package::digest::hash_through;
use crate::package::files::{Overwrite, open_regular, write_new};
use crate::package::keys::SigningKey;
use crate::package::{Error, hex, quarantine, signature};

/// Arguments of `cloister model sign`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    cloister model sign model.gguf --key signing.pem\n  \
    model_signing verify key --public_key signing.pub.pem --signature model.gguf.sig model.gguf")]
pub struct Arguments {
    /// The model, not encrypted.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Private key: P-256 or P-384, PKCS#8 PEM (made by `cloister keygen signing`).
    #[arg(long, value_name = "KEY")]
    key: PathBuf,
    /// Where the signature goes [default: FILE.sig].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace an existing signature.
    #[arg(long)]
    force: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `cloister model sign`.
///
/// # Errors
///
/// A file that cannot be read or written, a key of the wrong form.
pub fn run(arguments: &Arguments) -> Outcome {
    let out = arguments.out.clone().unwrap_or_else(|| with_suffix(&arguments.file, ".sig"));
    match sign(arguments, &out) {
        Ok((digest, hint)) => {
            if arguments.json {
                let report = serde_json::json!({
                    "file": arguments.file, "signature": out, "sha256": digest, "key": hint,
                });
                print(&report.to_string());
            } else {
                print(&format!("signed {}: {}", arguments.file.display(), out.display()));
                print(&format!("  sha256 {digest}\n  key    {hint}"));
            }
            Ok(Verdict::Holds)
        }
        Err(error) => fail(&arguments.file, &error, arguments.json),
    }
}

/// Returns the file's digest and the key's hint.
fn sign(arguments: &Arguments, out: &Path) -> Result<(String, String), Error> {
    quarantine::check(&arguments.file)?;
    let overwrite = if arguments.force { Overwrite::Force } else { Overwrite::No };
    if overwrite == Overwrite::No && out.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: out.to_owned() });
    }
    let key = SigningKey::open(&arguments.key)?;
    let file = open_regular(&arguments.file)?;
    let len_bytes = file.metadata().map_or(0, |metadata| metadata.len());
    let bar = progress_bar("hashing", len_bytes);
    let mut reader = Counted { file: &file, bar: bar.clone() };
    let hashed = hash_through(&mut reader, &mut io::sink());
    bar.finish_and_clear();
    let (digest, _) = hashed?;
    let name = arguments.file.file_name().unwrap_or_default().to_string_lossy();
    let bundle = signature::sign(&key, &name, &digest)?;
    write_new(out, 0o644, overwrite, bundle.as_bytes())?;
    Ok((hex(&digest.0), key.public().hint().to_owned()))
}
