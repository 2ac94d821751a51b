//! `cloister audit show`: all that the log says of one request or record, with what proves it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::super::{Outcome, Verdict, print, tell};
use super::filter::Filter;
use super::output::{broken, object};
use super::recorded::Reading;
use super::scan::{Found, forward};
use super::source::Log;
use super::text::{plain, time_text};
use crate::audit::Snapshot;
use crate::audit::proof_file::ProofFile;

/// Shortest beginning of a request's name that is looked for, in hex digits.
const REQUEST_LEN_MIN: usize = 4;

/// Arguments of `cloister audit show`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The request in hex (a beginning is enough), or #INDEX for one record.
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    log: Log,
    /// Also write a C2SP tlog-proof of each record: FILE, or FILE's name with the index before its
    /// ending when there are several.
    #[arg(long, value_name = "FILE")]
    proof: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `cloister audit show`.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    let id = arguments.id.to_lowercase();
    let index = id.strip_prefix('#').map(str::parse::<u64>);
    let is_hex = id.len() >= REQUEST_LEN_MIN && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hex && !matches!(index, Some(Ok(_))) {
        return Err(format!(
            "ID {}: give at least {REQUEST_LEN_MIN} hex digits of a request, or #INDEX",
            plain(&id)
        )
        .into());
    }
    let mut reader = arguments.log.open(Reading::Show, &Filter::default())?;
    let found = match index {
        Some(Ok(index)) => one(&mut reader, index),
        _ => of_request(&mut reader, &id),
    };
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            print(&broken(arguments.json, &error));
            return Ok(Verdict::Refused);
        }
    };
    let requests: std::collections::BTreeSet<_> =
        found.iter().filter_map(|one| one.record.event.request()).collect();
    if requests.len() > 1 {
        let names: Vec<_> = requests.iter().map(|name| plain(name)).collect();
        return Err(format!("ID {id} begins {} requests: {}", names.len(), names.join(", ")).into());
    }
    if found.is_empty() {
        tell(&format!("cloister: the log has no record of {}", plain(&id)));
        return Ok(Verdict::Refused);
    }
    let proofs: Vec<ProofFile> =
        found.iter().map(|one| reader.proof(one.index)).collect::<Result<_, _>>()?;
    show(arguments, &reader, &found, &proofs);
    if let Some(path) = &arguments.proof {
        for proof in &proofs {
            write_proof(path, proof, proofs.len() > 1)?;
        }
    }
    Ok(Verdict::Holds)
}

fn one(reader: &mut Snapshot, index: u64) -> Result<Vec<Found>, crate::audit::Error> {
    let entry = reader.entry(index)?;
    let record = reader.record(index)?;
    Ok(vec![Found { index, entry, record, origin: None }])
}

fn of_request(reader: &mut Snapshot, request: &str) -> Result<Vec<Found>, crate::audit::Error> {
    let filter = Filter { request: Some(request.to_owned()), ..Filter::default() };
    let mut found = Vec::new();
    forward(reader, &filter, &mut |one| {
        found.push(one);
        true
    })?;
    Ok(found)
}

fn show(arguments: &Arguments, reader: &Snapshot, found: &[Found], proofs: &[ProofFile]) {
    let signed = reader.checkpoint();
    let tree = format!("{} records of {}", signed.size, signed.origin);
    if arguments.json {
        let records: Vec<Value> = found
            .iter()
            .zip(proofs)
            .map(|(one, proof)| {
                let mut value = object(one.index, &one.record);
                value["inclusion"] = json!({
                    "size": signed.size,
                    "path": proof.path.iter().map(|hash| crate::audit::principal_keys::hex(hash)).collect::<Vec<_>>(),
                });
                value
            })
            .collect();
        print(
            &json!({ "verdict": "INCLUDED", "log": signed.origin, "records": records }).to_string(),
        );
        return;
    }
    print(&format!("INCLUDED: {} of {tree}", count(found.len(), "record")));
    for (one, proof) in found.iter().zip(proofs) {
        let record = &one.record;
        print("");
        print(&format!("#{} {} at {}", one.index, record.event.name(), time_text(record.time_s)));
        let mut rows = vec![(
            "machine's start".to_owned(),
            format!("{}, {} s after it", record.boot, record.monotonic_s),
        )];
        flatten("", &super::facts::members(&record.event), &mut rows);
        rows.push((
            "inclusion".to_owned(),
            format!("{} up to the signed root", count(proof.path.len(), "hash")),
        ));
        for (name, value) in rows {
            print(&format!("  {name:<28} {}", plain(&value)));
        }
    }
}

/// `1 record`, `2 records`.
fn count(count: usize, noun: &str) -> String {
    let ending = match (count, noun) {
        (1, _) => "",
        (_, "hash") => "es",
        _ => "s",
    };
    format!("{count} {noun}{ending}")
}

/// Every member with the way to it: `declared.outcome`.
pub(super) fn flatten(name: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    let join =
        |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") };
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(part, value)| flatten(&join(part), value, rows));
        }
        Value::Array(items) => {
            for (at, value) in items.iter().enumerate() {
                flatten(&join(&at.to_string()), value, rows);
            }
        }
        Value::String(text) => rows.push((name.to_owned(), text.clone())),
        Value::Null => {}
        other => rows.push((name.to_owned(), other.to_string())),
    }
}

/// Writes a proof to a new file.
fn write_proof(
    path: &Path,
    proof: &ProofFile,
    is_one_of_many: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    let path = if is_one_of_many {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let ending = path
            .extension()
            .map_or(String::new(), |ending| format!(".{}", ending.to_string_lossy()));
        path.with_file_name(format!("{stem}-{}{ending}", proof.index))
    } else {
        path.to_owned()
    };
    let fault = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(fault)?;
    file.write_all(proof.to_text().as_bytes()).map_err(fault)?;
    tell(&format!("wrote {}", path.display()));
    Ok(())
}
