//! `cloister model verify`: the checks that admit a model, without loading it.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Instant, SystemTime};

use clap::Args;
use nix::unistd::geteuid;
use ring::digest::{Context, SHA256};

use super::model_report::{Counted, fail, progress_bar, with_suffix};
use super::opening_limits::OpeningLimits;
use super::{Outcome, Verdict, print};
use crate::ipc::message::Digest;
use crate::package::age_stream::Decryptor;
use crate::package::bundle::BUNDLE_LEN_MAX_BYTES;
use crate::package::digest::hash_through;
use crate::package::files::{Ownership, open_regular, read_small};
use crate::package::keys::Identity;
use crate::package::open::{is_age, open_age};
use crate::package::signature::{Verified, verify};
use crate::package::statement::Statement;
use crate::package::trust::TrustStore;
use crate::package::{Error, hex};

/// Arguments of `cloister model verify`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    cloister model verify model.gguf --trust /etc/cloister/trust\n  \
    cloister model verify model.gguf.age --trust trust --identity identity.txt --timing")]
pub struct Arguments {
    /// The model, encrypted (age) or not.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The signature [default: FILE without .age, plus .sig].
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// Folder of public keys and roots (PEM) whose signatures count.
    #[arg(long, value_name = "DIR", default_value = "/etc/cloister/trust")]
    trust: PathBuf,
    /// age identity that opens an encrypted model.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print how long opening and hashing took, beside what this machine could do at most.
    #[arg(long)]
    timing: bool,
}

/// Runs `cloister model verify`.
///
/// # Errors
///
/// A file that cannot be read, a missing identity.
pub fn run(arguments: &Arguments) -> Outcome {
    let signature = arguments.signature.clone().unwrap_or_else(|| {
        let plain = arguments.file.with_extension("");
        let encrypted = arguments.file.extension().is_some_and(|extension| extension == "age");
        with_suffix(if encrypted { &plain } else { &arguments.file }, ".sig")
    });
    let ownership = Ownership::of(&[geteuid().as_raw()]);
    let trust = match TrustStore::open(&arguments.trust, &ownership) {
        Ok(trust) => trust,
        Err(error) => return fail(&arguments.trust, &error, arguments.json),
    };
    let statement = match verify_signature(&trust, &signature) {
        Ok(statement) => statement,
        Err(error) => return fail(&signature, &error, arguments.json),
    };
    let start = Instant::now();
    match hash_plaintext(arguments).and_then(|(digest, len_bytes)| {
        statement.check(&digest)?;
        Ok(len_bytes)
    }) {
        Ok(len_bytes) => {
            let seconds = start.elapsed().as_secs_f64();
            let limits = match arguments.timing {
                true => Some(limits(&arguments.file)?),
                false => None,
            };
            show(arguments, &statement, len_bytes, seconds, limits);
            Ok(Verdict::Holds)
        }
        Err(error) => fail(&arguments.file, &error, arguments.json),
    }
}

fn verify_signature(trust: &TrustStore, path: &Path) -> Result<Verified<Statement>, Error> {
    let bundle = read_small(path, "signature bundle", BUNDLE_LEN_MAX_BYTES as u64)?;
    verify(&bundle, trust, None, SystemTime::now())
}

/// Returns digest and length of the plaintext.
fn hash_plaintext(arguments: &Arguments) -> Result<(Digest, u64), Error> {
    let file = open_regular(&arguments.file)?;
    let bar = progress_bar("verifying", file.metadata().map_or(0, |metadata| metadata.len()));
    let outcome = if is_age(&file)? {
        hash_encrypted(arguments, file, &mut |n| bar.set_position(n))
    } else {
        hash_through(&mut Counted { file: &file, bar: bar.clone() }, &mut io::sink())
    };
    bar.finish_and_clear();
    outcome
}

fn hash_encrypted(
    arguments: &Arguments,
    file: File,
    progress: &mut dyn FnMut(u64),
) -> Result<(Digest, u64), Error> {
    let Some(path) = &arguments.identity else {
        return Err(Error::IdentityMissing);
    };
    let identity = Identity::open(path)?;
    // One processor hashes.
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let mut decryptor = Decryptor::new(processors.saturating_sub(1).max(1))?;
    let mut hash = Hash(Context::new(&SHA256));
    let len_bytes = open_age(file, &mut &identity, &mut decryptor, &mut hash, progress)?;
    let digest = hash.0.finish();
    Ok((Digest(digest.as_ref().try_into().expect("SHA-256 is 32 bytes")), len_bytes))
}

/// Hashes what is written, while other threads decrypt what comes next.
struct Hash(Context);

impl Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn limits(file: &Path) -> Result<OpeningLimits, Error> {
    let is_encrypted = is_age(&open_regular(file)?)?;
    OpeningLimits::measure(file, is_encrypted)
}

/// Prints the report; `limits` are there if a timing is asked for.
fn show(
    arguments: &Arguments,
    statement: &Statement,
    len_bytes: u64,
    seconds: f64,
    limits: Option<OpeningLimits>,
) {
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = len_bytes as f64 / seconds;
    let digest = hex(&statement.digest.0);
    if arguments.json {
        let mut report = serde_json::json!({
            "verdict": "VERIFIED", "file": arguments.file, "sha256": digest,
            "signer": statement.signer, "signed_as": statement.subject, "len_bytes": len_bytes,
        });
        if let Some(limits) = limits {
            report["seconds"] = seconds.into();
            report["bytes_per_s"] = rate.into();
            report["limits_bytes_per_s"] = serde_json::json!({
                "read": limits.read, "hash": limits.hash, "decrypt_and_hash": limits.both,
                "least": limits.least(),
            });
            report["share"] = (rate / limits.least()).into();
        }
        print(&report.to_string());
        return;
    }
    print(&format!("VERIFIED: {}", arguments.file.display()));
    print(&format!("  signer    {}", statement.signer));
    print(&format!("  signed as {}", statement.subject.escape_debug()));
    print(&format!("  sha256    {digest}"));
    if let Some(limits) = limits {
        let giga = |rate: f64| rate / 1e9;
        let both = limits.both.map_or(String::new(), |rate| {
            format!(", decrypt and hash {:.2} on all processors", giga(rate))
        });
        print(&format!(
            "  opened    {len_bytes} bytes in {seconds:.2} s, {:.2} GB/s: {:.0} % of what is possible",
            giga(rate),
            rate / limits.least() * 100.0,
        ));
        print(&format!(
            "  limits    read {:.2} GB/s, hash {:.2}{both}",
            giga(limits.read),
            giga(limits.hash),
        ));
    }
}
