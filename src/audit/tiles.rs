//! The tree on disk: hash tiles and record bundles, as plain files that other tools read.
//!
//! Layout: `tile/<L>/<N>[.p/<W>]` holds hashes, `tile/entries/<N>[.p/<W>]` records, each with a
//! big-endian 16-bit length. `N` is written in groups of three digits, all but the last led by
//! `x`. Source: C2SP tlog-tiles.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::Error;
use super::merkle::{Hash, TILE_WIDTH};

/// Longest record, in bytes: its length is 16 bits.
pub const RECORD_LEN_MAX_BYTES: usize = u16::MAX as usize;

/// Which files of the tree a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Hashes of this tile level.
    Hashes(u8),
    /// Records.
    Entries,
}

/// The path of tile `index`, holding `width` of 256 items.
#[must_use]
pub fn tile_path(folder: &Path, kind: Kind, index: u64, width: usize) -> PathBuf {
    let mut path = folder.join("tile");
    match kind {
        Kind::Hashes(level) => path.push(level.to_string()),
        Kind::Entries => path.push("entries"),
    }
    let mut groups = vec![format!("{:03}", index % 1000)];
    let mut rest = index / 1000;
    while rest > 0 {
        groups.push(format!("x{:03}", rest % 1000));
        rest /= 1000;
    }
    path.extend(groups.iter().rev());
    if width < TILE_WIDTH {
        let mut name = path.into_os_string();
        name.push(".p");
        path = PathBuf::from(name).join(width.to_string());
    }
    path
}

/// Reads the hashes of a tile of `width` hashes.
///
/// # Errors
///
/// [`Error::TileMissing`] unless the file is there and exactly as long as it must be.
pub fn read_hashes(folder: &Path, level: u8, index: u64, width: usize) -> Result<Vec<Hash>, Error> {
    let path = tile_path(folder, Kind::Hashes(level), index, width);
    let bytes = read_bounded(&path, TILE_WIDTH * 32)?;
    if bytes.len() != width * 32 {
        return Err(Error::TileMissing { path });
    }
    Ok(bytes.as_chunks::<32>().0.to_vec())
}

/// Holds the hashes of a tile against those that it must have.
///
/// # Errors
///
/// [`Error::TileMismatch`] with the place of the first that differs, or that one of them lacks.
pub(super) fn compare(level: u8, tile: u64, want: &[Hash], got: &[Hash]) -> Result<(), Error> {
    let most = want.len().max(got.len());
    match (0..most).find(|&at| want.get(at) != got.get(at)) {
        Some(at) => Err(Error::TileMismatch { level, index: tile * TILE_WIDTH as u64 + at as u64 }),
        None => Ok(()),
    }
}

/// Reads the records of a bundle of `width` records.
///
/// # Errors
///
/// [`Error::TileMissing`] or [`Error::BundleMalformed`].
pub fn read_entries(folder: &Path, index: u64, width: usize) -> Result<Vec<Vec<u8>>, Error> {
    let bytes = read_bundle(folder, index, width)?;
    let path = || tile_path(folder, Kind::Entries, index, width);
    let entries =
        split_entries(&bytes, width).ok_or_else(|| Error::BundleMalformed { path: path() })?;
    Ok(entries.into_iter().map(<[u8]>::to_vec).collect())
}

/// Reads the file of a bundle.
pub(super) fn read_bundle(folder: &Path, index: u64, width: usize) -> Result<Vec<u8>, Error> {
    let path = tile_path(folder, Kind::Entries, index, width);
    read_bounded(&path, TILE_WIDTH * (RECORD_LEN_MAX_BYTES + 2))
}

/// The `width` records of a bundle; `None` unless it holds just those.
pub(super) fn split_entries(bundle: &[u8], width: usize) -> Option<Vec<&[u8]>> {
    let mut entries = Vec::with_capacity(width);
    let mut rest = bundle;
    while let Some((len, tail)) = rest.split_first_chunk::<2>() {
        let (entry, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        entries.push(entry);
        rest = tail;
    }
    (rest.is_empty() && entries.len() == width).then_some(entries)
}

/// Encodes records as a bundle.
pub(super) fn encode_entries(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        let len = u16::try_from(entry.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&entry[..usize::from(len)]);
    }
    out
}

/// Opens a file of a log or of whoever proves something with one: a pipe or a device in its place would wait, or
/// never end.
///
/// # Errors
///
/// That it cannot be opened, or is no regular file.
pub fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("not a regular file")),
    }
}

/// Reads a whole file of at most `len_max` bytes.
pub(super) fn read_bounded(path: &Path, len_max: usize) -> Result<Vec<u8>, Error> {
    let file = match open_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::TileMissing { path: path.to_owned() });
        }
        other => other.map_err(Error::io("open", path))?,
    };
    let mut bytes = Vec::new();
    file.take(len_max as u64 + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() > len_max {
        return Err(Error::TileMissing { path: path.to_owned() });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_makes_nobody_wait() {
        let pipe = std::env::temp_dir().join(format!("cloister-tile-{}", std::process::id()));
        let _ = std::fs::remove_file(&pipe);
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [pipe.as_path(), Path::new("/dev/zero"), Path::new("/")] {
            let error = read_bounded(path, 100).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{error}");
        }
        std::fs::remove_file(&pipe).unwrap();
        std::fs::write(&pipe, "here").unwrap();
        assert_eq!(read_bounded(&pipe, 100).unwrap(), b"here");
        std::fs::remove_file(pipe).unwrap();
    }

    #[test]
    fn paths_are_those_of_tlog_tiles() {
        let path = |kind, index, width| tile_path(Path::new(""), kind, index, width);
        assert_eq!(path(Kind::Hashes(0), 1_234_067, 256), Path::new("tile/0/x001/x234/067"));
        assert_eq!(path(Kind::Entries, 0, 112), Path::new("tile/entries/000.p/112"));
        assert_eq!(path(Kind::Hashes(1), 1000, 3), Path::new("tile/1/x001/000.p/3"));
    }
}
