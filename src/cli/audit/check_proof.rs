//! `cloister audit check-proof`: one record's proof, offline, with nothing but the log's public key.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::super::{Outcome, Verdict, print};
use super::output::{broken, line, object};
use super::source::{PublicKey, read_text};
use crate::audit::proof_file::{PROOF_FILE_LEN_MAX_BYTES, ProofFile};

/// Arguments of `cloister audit check-proof`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The proof (C2SP tlog-proof), as `cloister audit show --proof` writes it.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    key: PublicKey,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `cloister audit check-proof`.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    let verifier = arguments.key.read()?;
    let text = read_text(&arguments.file, PROOF_FILE_LEN_MAX_BYTES)?;
    let proof = match ProofFile::parse(&text) {
        Ok(proof) => proof,
        Err(error) => {
            print(&broken(arguments.json, &error));
            return Ok(Verdict::Refused);
        }
    };
    match proof.check(&verifier) {
        Ok((signed, record)) if arguments.json => {
            print(
                &json!({
                    "verdict": "INCLUDED",
                    "log": signed.origin,
                    "size": signed.size,
                    "record": object(proof.index, &record),
                })
                .to_string(),
            );
            Ok(Verdict::Holds)
        }
        Ok((signed, record)) => {
            print(&format!(
                "INCLUDED: record {} of {} in {}",
                proof.index, signed.size, signed.origin
            ));
            print(&line(proof.index, &record));
            Ok(Verdict::Holds)
        }
        Err(error) => {
            print(&broken(arguments.json, &error));
            Ok(Verdict::Refused)
        }
    }
}
