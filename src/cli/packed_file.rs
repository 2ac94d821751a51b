//! A plain GGUF file, packed in memory as the loader does it: no key, no jail, no second copy.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::model_inspect::read_header;
use crate::engine::ImageLayout;
use crate::package::quarantine;
use crate::sys::memory::{SealedMemory, UnsealedMemory};

/// How long a model took to load.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadTimes {
    /// Reading the file.
    pub read: Duration,
    /// Packing.
    pub pack: Duration,
}

/// A GGUF file, packed in memory.
#[derive(Debug)]
pub struct PackedFile {
    image: SealedMemory,
    times: LoadTimes,
}

impl PackedFile {
    /// Reads and packs a file.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read, or the engine refuses the model.
    pub fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        Self::read_telling(path, |_, _| {})
    }

    /// Does the same, and tells how many bytes of how many are done.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read, or the engine refuses the model.
    pub fn read_telling(path: &Path, tell: impl Fn(u64, u64)) -> Result<Self, Box<dyn Error>> {
        let named = |error: io::Error| format!("{}: {error}", path.display());
        quarantine::check(path)?;
        let start = Instant::now();
        let (header, file_len) = read_header(path)?;
        let file = File::open(path).map_err(named)?;
        let layout = ImageLayout::new(&header)?;
        let mut image = UnsealedMemory::new("cloister-model", layout.total_len())?;
        file.read_exact_at(&mut image[..layout.header_len()], 0).map_err(named)?;
        let mut times = LoadTimes { read: start.elapsed(), pack: Duration::ZERO };
        let pool = ImageLayout::pack_pool();
        let mut source = Vec::new();
        for group in layout.groups(&header, pool.threads()) {
            let start = Instant::now();
            let ends = group.iter().map(|part| part.source.end);
            let (Some(first), Some(end)) = (group.first(), ends.max()) else { continue };
            let at = first.source.start;
            source.resize(end - at, 0);
            file.read_exact_at(&mut source, at as u64).map_err(named)?;
            times.read += start.elapsed();
            let start = Instant::now();
            image.collapse(ImageLayout::group_range(&group));
            layout.pack_group(&pool, &header, &group, (&source, at), &mut image);
            times.pack += start.elapsed();
            tell(end as u64, file_len);
        }
        let image = image.seal()?;
        Ok(Self { image: SealedMemory::open(image.as_fd())?, times })
    }

    /// Returns the image.
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    /// Returns how long it took.
    pub fn times(&self) -> LoadTimes {
        self.times
    }
}
