//! `cloister audit witness`: has a witness elsewhere sign that it saw the log's checkpoint.
//!
//! It reads the log and holds no key; it runs apart from the service, which has no network
//! (`systemd/cloister-witness.timer`). Source: C2SP tlog-witness, tlog-cosignature.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::json;

use super::audit::{DEFAULT_KEY, PUBLIC_KEY_LEN_MAX_BYTES, read_key, read_text};
use super::http_client::Client;
use super::{Outcome, Verdict, print, tell};
use crate::audit::note::NOTE_LEN_MAX_BYTES;
use crate::audit::{Snapshot, Verifier, Witness};

/// Longest answer of a witness that is looked at, in bytes.
const ANSWER_LEN_MAX_BYTES: usize = 64 << 10;
/// Most hashes of a proof, by C2SP.
const PROOF_COUNT_MAX: usize = 63;

/// Arguments of `cloister audit witness`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  cloister audit witness /var/lib/cloister/audit \\\n    \
    --witness https://witness.example/cloister --witness-key witness.vkey --out witnessed.txt\n\n\
    OUT holds the checkpoint with the witness's cosignature; give it to\n\
    `cloister audit verify --checkpoint OUT --witness-key FILE`. Exit code 1 when the witness refuses,\n\
    as it does when this log is not the one that it saw before: then somebody put an older state back.")]
pub struct Arguments {
    /// The log's folder.
    #[arg(value_name = "LOG", default_value = "/var/lib/cloister/audit")]
    folder: PathBuf,
    /// The log's public key (NAME+KEYID+BASE64).
    #[arg(long, value_name = "FILE", default_value = DEFAULT_KEY)]
    public_key: PathBuf,
    /// The witness's address, without `/add-checkpoint`.
    #[arg(long, value_name = "URL")]
    witness: String,
    /// The witness's public key.
    #[arg(long, value_name = "FILE")]
    witness_key: PathBuf,
    /// Certificates to trust instead of the system's.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Where the cosigned checkpoint is kept, from one run to the next.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `cloister audit witness`.
///
/// # Errors
///
/// A file that cannot be read, or no answer.
pub fn run(arguments: &Arguments) -> Outcome {
    let verifier = read_key(&arguments.public_key)?;
    let witness = read_text(&arguments.witness_key, PUBLIC_KEY_LEN_MAX_BYTES)?;
    let witness = Witness::parse(&witness)
        .map_err(|error| format!("{}: {error}", arguments.witness_key.display()))?;
    let mut reader = Snapshot::open(&arguments.folder, &verifier)?;
    let (server, path) = split_url(&arguments.witness)?;
    let client = Client::new(server, None, arguments.ca.as_deref())?;
    let seen = last_seen(&arguments.out, reader.verifier(), &witness)?;
    if seen > reader.checkpoint().size {
        return Ok(rolled_back(seen, &reader));
    }
    let mut answer = ask(&client, &path, &mut reader, seen)?;
    if let (409, Ok(seen)) = (answer.0, answer.1.trim().parse::<u64>()) {
        if seen > reader.checkpoint().size {
            return Ok(rolled_back(seen, &reader));
        }
        answer = ask(&client, &path, &mut reader, seen)?;
    }
    let (status, text) = answer;
    if status != 200 {
        let why = match status {
            404 => "it does not know this log",
            403 => "it does not know the log's key",
            422 => "the log does not extend what it saw: records were changed",
            409 => "the log is not what it saw",
            _ => "it gives no reason that is known",
        };
        tell(&format!("refused by {} (status {status}): {why}", witness.name()));
        return Ok(Verdict::Refused);
    }
    if text.len() > ANSWER_LEN_MAX_BYTES {
        return Err("the witness's answer is too long".into());
    }
    let note = format!("{}{text}", reader.note());
    let seen_s = witness
        .seen_s(note.as_bytes())
        .map_err(|_| format!("the answer is not signed by {}", witness.name()))?;
    write(&arguments.out, &note)?;
    let size = reader.checkpoint().size;
    match arguments.json {
        true => {
            print(&json!({ "size": size, "witness": witness.name(), "time_s": seen_s }).to_string())
        }
        false => print(&format!(
            "{size} records seen by {} at {}",
            witness.name(),
            super::audit::time_text(seen_s)
        )),
    }
    Ok(Verdict::Holds)
}

fn rolled_back(seen: u64, reader: &Snapshot) -> Verdict {
    tell(&format!(
        "refused: the witness has seen {seen} records, the log has {}: an older state of it was put back",
        reader.checkpoint().size
    ));
    Verdict::Refused
}

/// The size that the witness cosigned last, as far as is known here.
fn last_seen(
    out: &Path,
    verifier: &Verifier,
    witness: &Witness,
) -> Result<u64, Box<dyn std::error::Error>> {
    if !out.exists() {
        return Ok(0);
    }
    let note = read_text(out, NOTE_LEN_MAX_BYTES)?;
    let fault = |error| format!("{}: {error}; remove it to begin anew", out.display());
    witness.seen_s(note.as_bytes()).map_err(fault)?;
    Ok(verifier.kept(note.as_bytes()).map_err(fault)?.size)
}

/// Asks for a cosignature over the newest checkpoint; returns status and text.
fn ask(
    client: &Client,
    path: &str,
    reader: &mut Snapshot,
    old: u64,
) -> Result<(u16, String), Box<dyn std::error::Error>> {
    let mut body = format!("old {old}\n");
    let proof = reader.consistency(old)?;
    if proof.len() > PROOF_COUNT_MAX {
        return Err("the proof is too long".into());
    }
    for hash in proof {
        body.push_str(&STANDARD.encode(hash));
        body.push('\n');
    }
    body.push('\n');
    body.push_str(reader.note());
    Ok(client.post_text(&format!("{path}/add-checkpoint"), body)?)
}

/// Splits an address into server and path.
fn split_url(url: &str) -> Result<(&str, String), Box<dyn std::error::Error>> {
    let url = url.trim_end_matches('/');
    let after = url.find("://").ok_or("--witness: give an address as https://HOST/PATH")? + 3;
    let at = url[after..].find('/').map_or(url.len(), |at| at + after);
    Ok((&url[..at], url[at..].to_owned()))
}

/// Writes a file whole, in the place of the last.
fn write(path: &Path, text: &str) -> Result<(), String> {
    let fault = |error| format!("{}: {error}", path.display());
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let fresh = PathBuf::from(name);
    let mut file = fs::File::create(&fresh).map_err(fault)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fault)?;
    fs::rename(&fresh, path).map_err(fault)
}
