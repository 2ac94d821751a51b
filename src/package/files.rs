//! Files of a package: opened without following links, written without overwriting.
//!
//! Checks are made on the open descriptor, never on a path that could change in between.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};
use zeroize::Zeroizing;

use super::Error;

/// Who may own a file that is trusted, and that nobody else may write it.
#[derive(Clone, Debug)]
pub struct Ownership {
    uids: Vec<u32>,
}

impl Ownership {
    /// Trusts files of these users; of root always.
    #[must_use]
    pub fn of(uids: &[u32]) -> Self {
        Self { uids: [&[0], uids].concat() }
    }

    /// Checks an open file or folder.
    ///
    /// # Errors
    ///
    /// [`Error::Ownership`] when another user owns it or group or others may write it.
    pub fn check(&self, file: &File, path: &Path) -> Result<(), Error> {
        let metadata = file.metadata().map_err(io_error("look at", path))?;
        let mode = metadata.mode() & 0o7777;
        if self.uids.contains(&metadata.uid()) && mode & 0o022 == 0 {
            return Ok(());
        }
        Err(Error::Ownership { path: path.to_owned(), uid: metadata.uid(), mode })
    }
}

/// Opens a regular file for reading; a symbolic link, a pipe or a device is refused.
///
/// # Errors
///
/// [`Error::NotRegular`], or [`Error::Io`] when it cannot be opened.
pub fn open_regular(path: &Path) -> Result<File, Error> {
    // Non-blocking, so that a pipe in the file's place cannot make us wait.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    let file = file.map_err(|source| match source.raw_os_error() {
        Some(code) if code == Errno::ELOOP as i32 => Error::NotRegular { path: path.to_owned() },
        _ => Error::Io { action: "open", path: path.to_owned(), source },
    })?;
    if !file.metadata().map_err(io_error("look at", path))?.is_file() {
        return Err(Error::NotRegular { path: path.to_owned() });
    }
    Ok(file)
}

/// Reads a small file whole; `what` names it when it is too long.
///
/// # Errors
///
/// As [`open_regular`], and [`Error::TooLong`].
pub fn read_small(
    path: &Path,
    what: &'static str,
    limit_bytes: u64,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    read_small_open(&open_regular(path)?, path, what, limit_bytes)
}

/// Reads a small file whole from its descriptor.
///
/// # Errors
///
/// [`Error::TooLong`], or [`Error::Io`] when it cannot be read.
pub fn read_small_open(
    file: &File,
    path: &Path,
    what: &'static str,
    limit_bytes: u64,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let len = file.metadata().map_err(io_error("look at", path))?.len();
    if len > limit_bytes {
        return Err(Error::TooLong { what, limit_bytes });
    }
    // The whole capacity at once: a growing vector would leave copies of a key behind.
    let capacity = usize::try_from(limit_bytes).unwrap_or(usize::MAX).saturating_add(1);
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    let read = file.take(limit_bytes + 1).read_to_end(&mut bytes);
    read.map_err(io_error("read", path))?;
    if bytes.len() as u64 > limit_bytes {
        return Err(Error::TooLong { what, limit_bytes });
    }
    Ok(bytes)
}

/// Whether a file may take the place of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overwrite {
    /// Never.
    No,
    /// Yes, the operator said so.
    Force,
}

/// A file that appears under its name only when it is complete.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    overwrite: Overwrite,
    finished: bool,
}

impl NewFile {
    /// Creates it beside `path` with the permission bits `mode`.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`] when `path` exists and may not be overwritten, or [`Error::Io`].
    pub fn create(path: &Path, mode: u32, overwrite: Overwrite) -> Result<Self, Error> {
        if overwrite == Overwrite::No && fs::symlink_metadata(path).is_ok() {
            return Err(Error::Exists { path: path.to_owned() });
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary);
        let file = file.map_err(io_error("create", path))?;
        Ok(Self { file, temporary, path: path.to_owned(), overwrite, finished: false })
    }

    /// Makes the bytes durable and gives the file its name.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`] when the name was taken meanwhile, or [`Error::Io`].
    pub fn finish(mut self) -> Result<(), Error> {
        let path = self.path.clone();
        self.file.sync_all().map_err(io_error("write", &path))?;
        if self.overwrite == Overwrite::Force {
            fs::rename(&self.temporary, &path).map_err(io_error("create", &path))?;
            self.finished = true;
        } else {
            self.finished = self.name_unless_taken()?;
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new(".")));
        folder.and_then(|f| f.sync_all()).map_err(io_error("write", &path))
    }
}

impl NewFile {
    /// Gives the file its name; returns whether the temporary name is gone.
    fn name_unless_taken(&self) -> Result<bool, Error> {
        let (from, to) = (&self.temporary, &self.path);
        let flags = RenameFlags::RENAME_NOREPLACE;
        let renamed = match renameat2(AT_FDCWD, from, AT_FDCWD, to, flags) {
            // Some file systems (NFS) cannot; a hard link fails too where the name exists.
            Err(Errno::EINVAL) => fs::hard_link(from, to).map(|()| false),
            renamed => renamed.map(|()| true).map_err(std::io::Error::from),
        };
        renamed.map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => Error::Exists { path: to.clone() },
            _ => Error::Io { action: "create", path: to.clone(), source },
        })
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing to tell: an unfinished file has no meaning and no readers.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a small file at once.
///
/// # Errors
///
/// As [`NewFile`].
pub fn write_new(path: &Path, mode: u32, overwrite: Overwrite, bytes: &[u8]) -> Result<(), Error> {
    let mut file = NewFile::create(path, mode, overwrite)?;
    file.write_all(bytes).map_err(io_error("write", path))?;
    file.finish()
}

/// Makes the error of a file operation.
pub(crate) fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> Error + 'a {
    move |source| Error::Io { action, path: path.to_owned(), source }
}
