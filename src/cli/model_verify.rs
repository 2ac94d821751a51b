//! `cloister model verify`: the checks that admit a model, without loading it.

use std::path::Path;
use std::time::{Instant, SystemTime};

use clap::Args;

use super::model_package::ModelPackage;
use super::model_report::fail;
use super::{Outcome, Verdict, print};
use crate::package::files::open_regular;
use crate::package::open::is_age;
use crate::package::opening_limits::{Effort, OpeningLimits};
use crate::package::signature::verify;
use crate::package::statement::Statement;
use crate::package::{Error, hex, quarantine};

/// Arguments of `cloister model verify`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    cloister model verify model.gguf --trust /etc/cloister/trust\n  \
    cloister model verify model.gguf.age --trust trust --identity identity.txt --timing\n\n\
    Why a model is refused, check by check: cloister model explain.")]
pub struct Arguments {
    #[command(flatten)]
    package: ModelPackage,
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
    let package = &arguments.package;
    let trust = match package.trust_store() {
        Ok(trust) => trust,
        Err(error) => return fail(&package.trust, &error, arguments.json),
    };
    let verified = quarantine::check(&package.file)
        .and_then(|()| package.bundle())
        .and_then(|bundle| verify(&bundle, &trust, None, SystemTime::now()));
    let statement = match verified {
        Ok(statement) => statement,
        Err(error) => return fail(&package.signature(), &error, arguments.json),
    };
    let start = Instant::now();
    match package.hash().and_then(|(digest, len_bytes)| {
        statement.check(&digest)?;
        Ok(len_bytes)
    }) {
        Ok(len_bytes) => {
            let seconds = start.elapsed().as_secs_f64();
            let limits = match arguments.timing {
                true => Some(limits(&package.file)?),
                false => None,
            };
            show(arguments, &statement, len_bytes, seconds, limits);
            Ok(Verdict::Holds)
        }
        Err(error) => fail(&package.file, &error, arguments.json),
    }
}

fn limits(file: &Path) -> Result<OpeningLimits, Error> {
    let file = open_regular(file)?;
    OpeningLimits::measure(&file, is_age(&file)?, Effort::THOROUGH)
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
            "verdict": "VERIFIED", "file": arguments.package.file, "sha256": digest,
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
    print(&format!("VERIFIED: {}", arguments.package.file.display()));
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
