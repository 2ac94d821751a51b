//! The model package: only the signed bytes, from the right file, opened with the right key.

mod admission;
mod age_files;
mod bundles;
pub(crate) mod chains;
mod commands;
mod explain;
mod opener;
mod peers;
mod trust;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use cloister::package::files::{Overwrite, write_new};
use cloister::package::keys::SigningKey;

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("package-{}-{n}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file that only its owner may read and write.
    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        write_new(&path, 0o600, Overwrite::Force, bytes.as_ref()).unwrap();
        path
    }

    /// Writes a new signing key and its public half under `trust/`; returns the key's path.
    fn signer(&self, name: &str) -> PathBuf {
        let (key, pem) = SigningKey::generate().unwrap();
        fs::create_dir_all(self.path("trust")).unwrap();
        self.write(&format!("trust/{name}.pem"), key.public().to_pem());
        self.write(&format!("{name}.key"), pem.expose())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The folder of samples made by the reference tool.
fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/oms")
}

/// Numbers without a pattern, the same in every run (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}
