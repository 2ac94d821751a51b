//! The quarantine: folders from which nothing is loaded, each with a note of what lies there and why.
//!
//! A package in quarantine is a folder of its own with the model, its signature and `quarantine.json`.
//! That file beside a model is what keeps it from being opened, signed, sealed or timed, wherever the
//! folder is moved to; only [`release`] or whoever removes the file by hand ends it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::{Deserialize, Serialize};

use super::Error;
use super::files::{io_error, read_small};

/// The note's name.
pub const NOTE_FILE: &str = "quarantine.json";
/// Longest note, in bytes.
const NOTE_LEN_MAX_BYTES: u64 = 1 << 20;
/// Most packages of one file name.
const SAME_NAME_COUNT_MAX: u32 = 1000;

/// Why a package lies in quarantine.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// Where the model was.
    pub file: PathBuf,
    /// Where its signature was, if there was one.
    pub signature: Option<PathBuf>,
    /// When it was moved, in seconds since 1970.
    pub time_s: u64,
    /// Who moved it.
    pub uid: u32,
    /// Why, in one sentence.
    pub reason: String,
    /// Each check of the model with what it found.
    pub checks: Vec<NotedCheck>,
}

/// A check as it stands in a note.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct NotedCheck {
    /// Its name.
    pub check: String,
    /// `holds`, `fails` or `unknown`.
    pub verdict: String,
    /// What was found.
    pub found: String,
}

/// A package in quarantine.
#[derive(Debug)]
pub struct Held {
    /// Name of its folder.
    pub name: String,
    /// Its note, or why that cannot be read: the package stays where it is all the same.
    pub note: Result<Note, Error>,
}

/// Refuses a model that lies in quarantine.
///
/// # Errors
///
/// [`Error::Quarantined`], or [`Error::Io`] when its folder cannot be looked at.
pub fn check(model: &Path) -> Result<(), Error> {
    let note = model.with_file_name(NOTE_FILE);
    match fs::symlink_metadata(&note) {
        Ok(_) => Err(Error::Quarantined { note }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("look at", &note)(error)),
    }
}

/// Moves a package into a new folder of `quarantine`; returns that.
///
/// # Errors
///
/// [`Error::Io`]; across file systems too, since a copy would leave the model where it was for a while.
/// Then nothing has moved.
pub fn put(quarantine: &Path, note: &Note) -> Result<PathBuf, Error> {
    let mut folders = DirBuilder::new();
    folders.mode(0o700);
    folders.recursive(true).create(quarantine).map_err(io_error("create", quarantine))?;
    let folder = new_folder(quarantine, &file_name(&note.file))?;
    let path = folder.join(NOTE_FILE);
    // The note is there before the model is: no moment without it.
    let moved = write_note(&path, note).and_then(|()| {
        rename(&note.file, &folder.join(file_name(&note.file)))?;
        let Some(signature) = &note.signature else { return Ok(()) };
        rename(signature, &folder.join(file_name(signature))).inspect_err(|_| {
            // Back to where it was; if that fails too, it lies in quarantine with its note.
            let _ = rename(&folder.join(file_name(&note.file)), &note.file);
        })
    });
    if moved.is_err() && !folder.join(file_name(&note.file)).exists() {
        let _ = fs::remove_file(&path);
        let _ = fs::remove_dir(&folder);
    }
    moved.map(|()| folder)
}

/// Returns what lies in `quarantine`, by name.
///
/// # Errors
///
/// [`Error::Io`] when the folder cannot be read; one that is not there holds nothing.
pub fn list(quarantine: &Path) -> Result<Vec<Held>, Error> {
    let entries = match fs::read_dir(quarantine) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io_error("read", quarantine))?,
    };
    let mut held = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error("read", quarantine))?;
        if entry.path().join(NOTE_FILE).symlink_metadata().is_ok() {
            let name = entry.file_name().to_string_lossy().into_owned();
            held.push(Held { name, note: read_note(&entry.path()) });
        }
    }
    held.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(held)
}

/// Reads the note of one package.
///
/// # Errors
///
/// [`Error::Io`], [`Error::Note`].
pub fn read_note(folder: &Path) -> Result<Note, Error> {
    let path = folder.join(NOTE_FILE);
    let text = read_small(&path, "note", NOTE_LEN_MAX_BYTES)?;
    serde_json::from_slice(&text).map_err(|_| Error::Note { path })
}

/// Moves a package back to where it was; never over another file.
///
/// # Errors
///
/// [`Error::Exists`] when something has taken its place, [`Error::Io`]. Then it is still in quarantine.
pub fn release(folder: &Path, note: &Note) -> Result<(), Error> {
    // The model last: until it has moved, it lies in quarantine.
    let paths = || note.signature.iter().chain([&note.file]);
    let held = |path: &Path| folder.join(file_name(path));
    // What is not there was moved by an earlier try.
    let is_held = |path: &&PathBuf| held(path).symlink_metadata().is_ok();
    if let Some(path) = paths().filter(is_held).find(|path| path.symlink_metadata().is_ok()) {
        return Err(Error::Exists { path: path.clone() });
    }
    paths().filter(is_held).try_for_each(|path| rename(&held(path), path))?;
    let path = folder.join(NOTE_FILE);
    fs::remove_file(&path).map_err(io_error("remove", &path))?;
    fs::remove_dir(folder).map_err(io_error("remove", folder))
}

fn file_name(path: &Path) -> PathBuf {
    path.file_name().unwrap_or_default().into()
}

/// Makes a folder of this name, or with a number behind it.
fn new_folder(quarantine: &Path, name: &Path) -> Result<PathBuf, Error> {
    let first = quarantine.join(name);
    for number in 1..=SAME_NAME_COUNT_MAX {
        let mut folder = first.clone().into_os_string();
        if number > 1 {
            folder.push(format!(".{number}"));
        }
        let folder = PathBuf::from(folder);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => return made.map(|()| folder.clone()).map_err(io_error("create", &folder)),
        }
    }
    Err(Error::Exists { path: first })
}

fn write_note(path: &Path, note: &Note) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(note).map_err(|error| Error::Io {
        action: "write",
        path: path.to_owned(),
        source: error.into(),
    })?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(io_error("create", path))?;
    file.write_all(text.as_bytes()).map_err(io_error("write", path))?;
    file.sync_all().map_err(io_error("write", path))
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    let renamed = renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE);
    renamed.map_err(std::io::Error::from).map_err(|source| match source.kind() {
        ErrorKind::AlreadyExists => Error::Exists { path: to.to_owned() },
        _ => Error::Io { action: "move", path: from.to_owned(), source },
    })
}
