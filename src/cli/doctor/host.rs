//! The machine as the kernel's files describe it, below a root that tests choose.

use std::fs;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::sys::clock;
use crate::sys::process::landlock_abi;

/// Longest file that is read, in bytes.
const FILE_LEN_MAX_BYTES: u64 = 1 << 20;

/// A machine.
pub(super) struct Host {
    root: PathBuf,
    /// What the kernel answers to landlock.
    pub(super) landlock: Result<u32, Errno>,
    /// Whether the clock is held to a source.
    pub(super) clock_is_synchronized: bool,
    /// What the driver tells of memory of cards, in a program that loads it.
    pub(super) cards: Vec<String>,
}

impl Host {
    /// The machine that this runs on.
    pub(super) fn this() -> Self {
        Self {
            root: PathBuf::from("/"),
            landlock: landlock_abi(),
            clock_is_synchronized: clock::is_synchronized(),
            cards: cards(),
        }
    }

    /// A machine whose files are copies below `root`, and which is otherwise as it should be.
    #[cfg(test)]
    pub(super) fn copied(root: &std::path::Path) -> Self {
        let cards = Vec::new();
        Self { root: root.to_owned(), landlock: Ok(7), clock_is_synchronized: true, cards }
    }

    /// A path of the machine's, as this process sees it.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text without the white space around it; `None` when it cannot be read.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        use std::io::Read as _;
        let file = fs::File::open(self.path(path)).ok()?;
        let mut text = Vec::new();
        file.take(FILE_LEN_MAX_BYTES).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// A file's number.
    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    /// The names in a folder, sorted.
    pub(super) fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Whether there is such a file, device or folder.
    pub(super) fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }
}

/// The memory of each card that its driver finds, or why it finds none.
#[cfg(feature = "cuda")]
fn cards() -> Vec<String> {
    use kernels::cuda::{Card, CudaError, Device, Driver};
    let describe = |driver: &Driver, device: &Device| -> Result<String, CudaError> {
        let free = Card::open(driver, device)?.free_memory()?;
        let (free, memory) = (free >> 20, device.memory >> 20);
        Ok(format!("{}: {free} of {memory} MiB free", device.name))
    };
    let all = || -> Result<Vec<String>, CudaError> {
        let driver = Driver::load()?;
        driver.devices()?.iter().map(|device| describe(&driver, device)).collect()
    };
    all().unwrap_or_else(|error| vec![error.to_string()])
}

/// This program loads no driver.
#[cfg(not(feature = "cuda"))]
fn cards() -> Vec<String> {
    Vec::new()
}
