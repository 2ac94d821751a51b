//! Lines of a file that may be hostile: of bounded length, read one by one.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use crate::audit::tiles::open_file;

/// A file's lines.
pub(super) struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    len_max: usize,
}

impl Lines {
    /// Opens a file whose lines are at most `len_max` bytes long.
    pub(super) fn open(path: &Path, len_max: usize) -> Result<Self, String> {
        let file = open_file(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path: path.to_owned(), file: BufReader::new(file), len_max })
    }

    /// The next line, without its end; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        let fault = |why: &dyn std::fmt::Display| format!("{}: {why}", self.path.display());
        let mut line = Vec::new();
        let limit = self.len_max as u64 + 1;
        let read = (&mut self.file).take(limit).read_until(b'\n', &mut line);
        if read.map_err(|error| fault(&error))? == 0 {
            return Ok(None);
        }
        if line.pop() != Some(b'\n') {
            return Err(fault(&"a line is cut or too long"));
        }
        Ok(Some(line))
    }
}
