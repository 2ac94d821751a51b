//! `cloister audit verify-export`: an export, offline, with nothing but the log's public key.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::super::{Outcome, Verdict, print};
use super::convert::Format;
use super::export::{CONSISTENCY_HEAD, TREE_HEAD};
use super::filter::Origins;
use super::lines::Lines;
use super::output::broken;
use super::scan::Found;
use super::source::{read_key, read_text};
use crate::audit::merkle::leaf_hash;
use crate::audit::note::NOTE_LEN_MAX_BYTES;
use crate::audit::proof::{PROOF_LEN_MAX, Roots, is_consistent};
use crate::audit::proof_file::parse_hash;
use crate::audit::snapshot::parse;
use crate::audit::tiles::RECORD_LEN_MAX_BYTES;
use crate::audit::{Checkpoint, Verifier};

/// Longest line of a converted file, in bytes: a record, every byte escaped, and its columns.
const LINE_LEN_MAX_BYTES: usize = 16 * RECORD_LEN_MAX_BYTES;

/// Arguments of `cloister audit verify-export`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The export.
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// The log's public key, from elsewhere [default: the enclosed one, which proves only that the
    /// export is whole].
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What an export shows.
struct Verified {
    signed: Checkpoint,
    records: u64,
    formats: Vec<&'static str>,
    since: Option<u64>,
}

/// Runs `cloister audit verify-export`.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    let enclosed = arguments.folder.join("log.vkey");
    let verifier = read_key(arguments.public_key.as_ref().unwrap_or(&enclosed))?;
    let verified = match verify(arguments, &verifier) {
        Ok(verified) => verified,
        Err(why) => {
            print(&broken(arguments.json, &why));
            return Ok(Verdict::Refused);
        }
    };
    let key = match arguments.public_key {
        Some(_) => "signed by the given key",
        None => "signed by the enclosed key, which must be held against one from elsewhere",
    };
    let Verified { signed, records, formats, since } = verified;
    if arguments.json {
        print(
            &json!({
                "verdict": "WHOLE", "log": signed.origin, "size": signed.size, "records": records,
                "key": if arguments.public_key.is_some() { "given" } else { "enclosed" },
                "formats": formats, "extends": since,
            })
            .to_string(),
        );
        return Ok(Verdict::Holds);
    }
    print(&format!("WHOLE: {records} of {} records of {}, {key}", signed.size, signed.origin));
    for format in formats {
        print(&format!("  {format} says what the records say"));
    }
    if let Some(size) = since {
        print(&format!("  the log extends the enclosed older checkpoint of {size} records"));
    }
    Ok(Verdict::Holds)
}

fn verify(
    arguments: &Arguments,
    verifier: &Verifier,
) -> Result<Verified, Box<dyn std::error::Error>> {
    let at = |name: &str| arguments.folder.join(name);
    let verifier = verifier.follow(&arguments.folder)?;
    let checkpoint = |name: &str| -> Result<Checkpoint, Box<dyn std::error::Error>> {
        let note = read_text(&at(name), NOTE_LEN_MAX_BYTES)?;
        verifier.kept(note.as_bytes()).map_err(|error| format!("{name}: {error}").into())
    };
    let signed = checkpoint("checkpoint")?;
    let formats: Vec<Format> = [Format::Csv, Format::Ocsf, Format::Cef]
        .into_iter()
        .filter(|format| at(format.file()).exists())
        .collect();
    let records = walk(arguments, &signed, &formats)?;
    let since = if at("older.checkpoint").exists() {
        let older = checkpoint("older.checkpoint")?;
        let mut lines = Lines::open(&at("consistency.txt"), 64)?;
        let mut path = Vec::new();
        let head = lines.next()?;
        while let Some(line) = lines.next()? {
            if path.len() == PROOF_LEN_MAX {
                return Err("consistency.txt is too long".into());
            }
            path.push(parse_hash(&String::from_utf8_lossy(&line))?);
        }
        let is_head = head.as_deref() == Some(CONSISTENCY_HEAD.as_bytes());
        if !is_head || !is_consistent((older.size, older.root), (signed.size, signed.root), &path) {
            return Err("the log does not extend the older checkpoint".into());
        }
        Some(older.size)
    } else {
        None
    };
    let formats = formats.into_iter().map(Format::file).collect();
    Ok(Verified { signed, records, formats, since })
}

/// Computes the root from records and nodes, and holds the other shapes against the records.
fn walk(
    arguments: &Arguments,
    signed: &Checkpoint,
    formats: &[Format],
) -> Result<u64, Box<dyn std::error::Error>> {
    let at = |name: &str| arguments.folder.join(name);
    let mut tree = Lines::open(&at("tree.txt"), 128)?;
    if tree.next()?.as_deref() != Some(TREE_HEAD.as_bytes()) {
        return Err("tree.txt is not of a known version".into());
    }
    let mut records = Lines::open(&at(Format::Jsonl.file()), RECORD_LEN_MAX_BYTES + 1)?;
    let mut others = Vec::new();
    for format in formats {
        let mut lines = Lines::open(&at(format.file()), LINE_LEN_MAX_BYTES)?;
        if let Some(head) = format.head() {
            hold(*format, 0, lines.next()?, head)?;
        }
        others.push((*format, lines));
    }
    let (mut roots, mut origins, mut count) = (Roots::default(), Origins::default(), 0);
    while let Some(line) = tree.next()? {
        let line = String::from_utf8(line)?;
        let malformed = || format!("tree.txt: {line:?} is no line of it");
        if let Some(many) = line.strip_prefix("records ") {
            let many: u64 = many.parse().map_err(|_| malformed())?;
            for _ in 0..many {
                let index = roots.size();
                let entry = records.next()?.ok_or("records.jsonl ends too early")?;
                if index >= signed.size || !roots.push(0, leaf_hash(&entry)) {
                    return Err("there are more records than were signed".into());
                }
                let record = parse(&entry, index)?;
                let origin = origins.see(&record.event);
                let found = Found { index, entry, record, origin };
                for (format, lines) in &mut others {
                    hold(*format, index, lines.next()?, &format.line(&signed.origin, &found))?;
                }
                count += 1;
            }
        } else {
            let node = line.strip_prefix("node ").and_then(|rest| rest.split_once(' '));
            let (height, hash) = node.ok_or_else(malformed)?;
            let height: u8 = height.parse().map_err(|_| malformed())?;
            if !roots.push(height, parse_hash(hash)?) {
                return Err(malformed().into());
            }
        }
    }
    if records.next()?.is_some() {
        return Err("records.jsonl holds more records than the tree".into());
    }
    for (format, mut lines) in others {
        if lines.next()?.is_some() {
            return Err(format!("{} says more than the records", format.file()).into());
        }
    }
    if roots.size() != signed.size || roots.root() != signed.root {
        return Err("the records do not lead to the signed root".into());
    }
    Ok(count)
}

/// Whether a line of another shape is what the record says.
fn hold(format: Format, index: u64, is: Option<Vec<u8>>, want: &str) -> Result<(), String> {
    match is.as_deref() == Some(want.as_bytes()) {
        true => Ok(()),
        false => Err(format!("{} does not say what record {index} says", format.file())),
    }
}
