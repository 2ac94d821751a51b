//! Opening a file that others must not read: no symlink, a regular file, the right owner and mode.
//!
//! Checks are made on the descriptor, so that what was checked is what is read.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use zeroize::Zeroizing;

use crate::secret::Secret;

/// Why a file is not taken.
#[derive(Debug)]
pub enum Error {
    /// It cannot be opened or read.
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a symlink, a folder, a pipe.
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// Another than root or ourselves owns it.
    Owner {
        /// The file.
        path: PathBuf,
        /// Who owns it.
        uid: u32,
        /// Who must.
        want: u32,
    },
    /// Its group or others may read or write it.
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is longer than what it should hold.
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit.
        max: usize,
    },
}

impl Error {
    /// Whether there is no such file.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Self::NotRegular { path } => {
                write!(f, "{}: not a regular file (a link is refused too)", path.display())
            }
            Self::Owner { path, uid, want } => {
                write!(f, "{}: belongs to uid {uid}; chown {want} it", path.display())
            }
            Self::Mode { path, mode } => write!(
                f,
                "{}: mode {mode:04o} lets others read or write it; chmod 600 it",
                path.display()
            ),
            Self::TooLong { path, max } => {
                write!(f, "{}: longer than {max} bytes; it holds something else", path.display())
            }
        }
    }
}

impl std::error::Error for Error {}

/// An open file that passed the checks.
#[derive(Debug)]
pub struct SecretFile {
    file: File,
    path: PathBuf,
}

/// Opens `path` if it is a regular file of `owner_uid` (or root) that nobody else may touch.
///
/// # Errors
///
/// [`Error`] names the check that failed.
pub fn open(path: &Path, owner_uid: u32) -> Result<SecretFile, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    // Nonblocking, so that a pipe in the file's place cannot hold the start up.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path);
    let file = file.map_err(|source| match source.raw_os_error() {
        Some(code) if code == nix::errno::Errno::ELOOP as i32 => {
            Error::NotRegular { path: path.to_owned() }
        }
        _ => io(source),
    })?;
    check(file, path, owner_uid)
}

/// Takes a file that another process opened, after the same checks.
///
/// # Errors
///
/// As [`open`].
pub fn adopt(file: OwnedFd, owner_uid: u32) -> Result<SecretFile, Error> {
    check(File::from(file), Path::new("(descriptor)"), owner_uid)
}

fn check(file: File, path: &Path, owner_uid: u32) -> Result<SecretFile, Error> {
    let path = path.to_owned();
    let facts = match file.metadata() {
        Ok(facts) => facts,
        Err(source) => return Err(Error::Io { path, source }),
    };
    if !facts.is_file() {
        return Err(Error::NotRegular { path });
    }
    if facts.uid() != owner_uid && facts.uid() != 0 {
        return Err(Error::Owner { path, uid: facts.uid(), want: owner_uid });
    }
    let mode = facts.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::Mode { path, mode });
    }
    Ok(SecretFile { file, path })
}

impl SecretFile {
    /// Reads the whole file, if it is at most `max` bytes long.
    ///
    /// # Errors
    ///
    /// `TooLong` or `Io`.
    pub fn read_to_end(mut self, max: usize) -> Result<Secret, Error> {
        let mut bytes = Zeroizing::new(vec![0; max + 1]);
        let mut len = 0;
        while len < bytes.len() {
            match self.file.read(&mut bytes[len..]) {
                Ok(0) => return Ok(Secret::new(bytes[..len].to_vec())),
                Ok(count) => len += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Io { path: self.path, source }),
            }
        }
        Err(Error::TooLong { path: self.path, max })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn links_pipes_folders_wrong_modes_and_long_files_are_refused() {
        let uid = nix::unistd::geteuid().as_raw();
        let folder = std::env::temp_dir().join(format!("cloister-secret-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("key");
        std::fs::write(&file, b"0123456789").unwrap();
        let set = |mode| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set(0o640);
        assert!(matches!(open(&file, uid), Err(Error::Mode { mode: 0o640, .. })));
        set(0o600);
        assert_eq!(open(&file, uid).unwrap().read_to_end(10).unwrap().expose(), b"0123456789");
        assert!(matches!(open(&file, uid).unwrap().read_to_end(9), Err(Error::TooLong { .. })));
        let link = folder.join("link");
        symlink(&file, &link).unwrap();
        assert!(matches!(open(&link, uid), Err(Error::NotRegular { .. })));
        assert!(matches!(open(&folder, uid), Err(Error::NotRegular { .. })));
        let pipe = folder.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(open(&pipe, uid), Err(Error::NotRegular { .. })));
        assert!(open(&folder.join("none"), uid).unwrap_err().is_absent());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
