//! The file operations that a log is written with: each is durable only where it says so.
//!
//! All writing of the log goes through [`Disk`], so that a test can let any single operation fail,
//! or forget what was not synced. Nothing here retries: after a failed sync nobody knows what is on
//! the disk, and the caller writes anew.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::Error;
use super::tiles::read_bounded;

/// Writing, as the log needs it.
pub(super) trait Disk: fmt::Debug + Send + Sync {
    /// Opens an empty file for reading and writing, in the place of any other.
    fn create(&self, path: &Path) -> io::Result<File>;
    /// Opens a file that is there, for reading and writing.
    fn open(&self, path: &Path) -> io::Result<File>;
    /// Writes all `bytes` at `offset`.
    fn write_at(&self, file: &File, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes a file's bytes and length durable.
    fn sync(&self, file: &File, path: &Path) -> io::Result<()>;
    /// Gives a file another name, in the place of any other file.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a folder and those above it, where they are not there.
    fn make_folders(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
}

/// The file systems of the machine.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Whether anything is made durable at all.
    pub(super) is_durable: bool,
}

impl Disk for Kernel {
    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(path)
    }

    fn write_at(&self, mut file: &File, _: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)
    }

    fn sync(&self, file: &File, _: &Path) -> io::Result<()> {
        if self.is_durable { file.sync_data() } else { Ok(()) }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn make_folders(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() { Ok(()) } else { fs::create_dir_all(path) }
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        if self.is_durable { File::open(path)?.sync_all() } else { Ok(()) }
    }
}

/// Whether a file's bytes are on the disk when [`put`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durable {
    /// They are; its name is once its folder was synced.
    Yes,
    /// They may be.
    No,
}

/// Writes a file whole, in the place of any other: readers see all of it or none.
pub(super) fn put(
    disk: &dyn Disk,
    path: &Path,
    bytes: &[u8],
    durable: Durable,
) -> Result<(), Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let fresh = PathBuf::from(name);
    let file = put_new(disk, &fresh, bytes)?;
    if durable == Durable::Yes {
        disk.sync(&file, &fresh).map_err(Error::io("sync", &fresh))?;
    }
    disk.rename(&fresh, path).map_err(Error::io("rename", path))
}

/// Writes a file whole, unsynced, unless it is there with these bytes.
pub(super) fn put_if_other(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    match read_bounded(path, bytes.len()) {
        Ok(found) if found == bytes => Ok(()),
        _ => put(disk, path, bytes, Durable::No),
    }
}

/// Writes a file that no reader looks for yet.
pub(super) fn put_new(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<File, Error> {
    if let Some(folder) = path.parent() {
        disk.make_folders(folder).map_err(Error::io("create", folder))?;
    }
    let file = disk.create(path).map_err(Error::io("create", path))?;
    disk.write_at(&file, path, 0, bytes).map_err(Error::io("write", path))?;
    Ok(file)
}

/// Makes the names on the way from `log` to each of `paths` durable, and no other: what lies above
/// the log cannot be opened.
pub(super) fn sync_names<'a>(
    disk: &dyn Disk,
    log: &Path,
    paths: impl Iterator<Item = &'a Path>,
) -> Result<(), Error> {
    let above = |path: &'a Path| path.ancestors().skip(1);
    let folders: BTreeSet<&Path> =
        paths.flat_map(above).filter(|folder| folder.starts_with(log)).collect();
    for folder in folders.into_iter().rev() {
        disk.sync_folder(folder).map_err(Error::io("sync", folder))?;
    }
    Ok(())
}
