//! `cloister audit export`: records that prove themselves on another machine.
//!
//! | file | what |
//! |---|---|
//! | `records.jsonl` | the records, byte for byte as they were signed, one a line |
//! | `tree.txt` | the way from them to the root: `records COUNT` for the next lines, `node HEIGHT HASH` for a subtree that is not exported |
//! | `rotation/` | the changes of the log's key, where there were any |
//! | `checkpoint`, `log.vkey` | the signed root; the public key, to be held against one from elsewhere |
//! | `older.checkpoint`, `consistency.txt` | with `--since`: that this log extends an older checkpoint |
//! | `records.csv`, … | the same records in other shapes |

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;

use super::super::{Outcome, Verdict, print, tell};
use super::convert::Format;
use super::filter::{Filter, Origins};
use super::output::broken;
use super::recorded::Reading;
use super::scan::{Absent, Found, forward};
use super::source::{Log, read_text};
use crate::audit::Snapshot;
use crate::audit::note::NOTE_LEN_MAX_BYTES;
use crate::audit::proof::cover;

/// First line of `tree.txt`.
pub(super) const TREE_HEAD: &str = "cloister-audit-tree/v1";
/// First line of `consistency.txt`.
pub(super) const CONSISTENCY_HEAD: &str = "cloister-audit-consistency/v1";

/// Arguments of `cloister audit export`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    log: Log,
    #[command(flatten)]
    filter: Filter,
    /// The folder to make.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Another shape to write beside the records; may be repeated.
    #[arg(long, value_enum)]
    format: Vec<Format>,
    /// An older checkpoint of the log; the export then shows that nothing before it was changed.
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

type Fault = Box<dyn std::error::Error>;

/// Runs `cloister audit export`.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    let mut reader = arguments.log.open(Reading::Export, &arguments.filter)?;
    let verifier = reader.verifier().clone();
    let older = match &arguments.since {
        Some(path) => Some(read_text(path, NOTE_LEN_MAX_BYTES)?),
        None => None,
    };
    let older = match &older {
        Some(note) => Some((note, verifier.kept(note.as_bytes())?)),
        None => None,
    };
    let out = &arguments.out;
    fs::create_dir(out).map_err(|error| format!("cannot create {}: {error}", out.display()))?;
    write(&out.join("checkpoint"), reader.note())?;
    write(&out.join("log.vkey"), &format!("{}\n", verifier.to_text()))?;
    for change in verifier.changes() {
        fs::create_dir_all(out.join("rotation"))?;
        write(&out.join("rotation").join(change.name()), change.text())?;
    }
    let mut export = Export::new(arguments, &reader)?;
    let mut fault = None;
    let scanned = forward(&mut reader, &arguments.filter, &mut |found| {
        fault = export.add(found).err();
        fault.is_none()
    });
    if let Some(fault) = fault {
        return Err(fault);
    }
    let absent = match scanned {
        Ok(absent) => absent,
        Err(error) => {
            print(&broken(arguments.json, &error));
            return Ok(Verdict::Refused);
        }
    };
    let count = export.finish(&mut reader)?;
    if let Some((note, checkpoint)) = older {
        let path = reader.consistency(checkpoint.size)?;
        let hashes = path.iter().map(|hash| format!("{}\n", STANDARD.encode(hash)));
        write(&out.join("older.checkpoint"), note)?;
        write(
            &out.join("consistency.txt"),
            &format!("{CONSISTENCY_HEAD}\n{}", hashes.collect::<String>()),
        )?;
    }
    told(arguments, &reader, count, &absent);
    Ok(Verdict::Holds)
}

fn told(arguments: &Arguments, reader: &Snapshot, count: u64, absent: &Absent) {
    absent.sentence().iter().for_each(|sentence| tell(&format!("cloister: {sentence}")));
    let (out, signed) = (arguments.out.display(), reader.checkpoint());
    if arguments.json {
        let value = serde_json::json!({
            "folder": arguments.out, "records": count, "log": signed.origin, "size": signed.size,
        });
        print(&value.to_string());
        return;
    }
    print(&format!("{out}: {count} of {} records of {}", signed.size, signed.origin));
    print(&format!(
        "check it elsewhere with: cloister audit verify-export {out} --public-key FILE"
    ));
}

/// The files of an export while it is made.
struct Export {
    log: String,
    files: Vec<(Format, BufWriter<File>)>,
    origins: Origins,
    /// Ranges of exported records.
    kept: Vec<std::ops::Range<u64>>,
    tree: BufWriter<File>,
}

impl Export {
    fn new(arguments: &Arguments, reader: &Snapshot) -> Result<Self, Fault> {
        let mut formats = vec![Format::Jsonl];
        formats.extend(arguments.format.iter().filter(|format| **format != Format::Jsonl));
        formats.dedup();
        let mut files = Vec::new();
        for format in formats {
            let mut file = create(&arguments.out.join(format.file()))?;
            if let Some(head) = format.head() {
                writeln!(file, "{head}")?;
            }
            files.push((format, file));
        }
        let mut tree = create(&arguments.out.join("tree.txt"))?;
        writeln!(tree, "{TREE_HEAD}")?;
        let log = reader.checkpoint().origin.clone();
        Ok(Self { log, files, origins: Origins::default(), kept: Vec::new(), tree })
    }

    fn add(&mut self, mut found: Found) -> Result<(), Fault> {
        if found.entry.contains(&b'\n') {
            return Err(format!(
                "record {} holds a line's end and cannot stand in a line",
                found.index
            )
            .into());
        }
        match self.kept.last_mut() {
            Some(range) if range.end == found.index => range.end += 1,
            _ => self.kept.push(found.index..found.index + 1),
        }
        // What a line says must follow from the exported records alone.
        found.origin = self.origins.see(&found.record.event);
        for (format, file) in &mut self.files {
            match format {
                Format::Jsonl => file.write_all(&found.entry)?,
                _ => file.write_all(format.line(&self.log, &found).as_bytes())?,
            }
            file.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Writes the way to the root; returns how many records were exported.
    fn finish(mut self, reader: &mut Snapshot) -> Result<u64, Fault> {
        let mut at = 0;
        let mut count = 0;
        let size = reader.size();
        let end = size..size;
        for range in self.kept.iter().chain([&end]) {
            for (start, height) in cover(at..range.start) {
                let hash = STANDARD.encode(reader.node(start, height)?);
                writeln!(self.tree, "node {height} {hash}")?;
            }
            let records = range.end - range.start;
            if records > 0 {
                writeln!(self.tree, "records {records}")?;
            }
            count += records;
            at = range.end;
        }
        sync(self.tree)?;
        for (_, file) in self.files {
            sync(file)?;
        }
        Ok(count)
    }
}

fn create(path: &Path) -> Result<BufWriter<File>, Fault> {
    let file = File::create_new(path)
        .map_err(|error| format!("cannot create {}: {error}", path.display()))?;
    Ok(BufWriter::new(file))
}

fn write(path: &Path, text: &str) -> Result<(), Fault> {
    let mut file = create(path)?;
    file.write_all(text.as_bytes())?;
    sync(file)
}

fn sync(file: BufWriter<File>) -> Result<(), Fault> {
    let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    Ok(file.sync_all()?)
}
