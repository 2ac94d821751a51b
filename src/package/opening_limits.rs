//! What bounds the opening of a model: the disk, and what the processors hash and decrypt at most.
//!
//! Measured in the same run as the opening that is held against it, with the same libraries.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::time::Instant;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};

use super::Error;
use super::age_stream::CHUNK_LEN_BYTES;

/// Bytes that are read at once.
const READ_STEP_BYTES: usize = 1 << 20;
/// Repetitions; the best counts, since a busy machine shows its limits now and then.
const ROUNDS: usize = 3;

/// How much work a measurement may be.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Bytes that are hashed and decrypted for a figure.
    sample_len_bytes: usize,
    /// Most bytes of the file that are read for a figure.
    read_len_max_bytes: u64,
}

impl Effort {
    /// For who waits for it: a second or two.
    pub const THOROUGH: Self = Self { sample_len_bytes: 64 << 20, read_len_max_bytes: 1 << 30 };
    /// For a start: a fifth of a second.
    pub const SHORT: Self = Self { sample_len_bytes: 16 << 20, read_len_max_bytes: 64 << 20 };
}

/// Rates in bytes a second.
#[derive(Clone, Copy, Debug)]
pub struct OpeningLimits {
    /// Reading the file, as it is cached now.
    pub read: f64,
    /// SHA-256 on one thread: a hash has no parts.
    pub hash: f64,
    /// ChaCha20-Poly1305 and SHA-256 of the same bytes, on all processors at once; nothing for a file that
    /// is not encrypted.
    pub both: Option<f64>,
}

impl OpeningLimits {
    /// Measures, with this file for the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Stream`] when the file cannot be read or a thread not be made.
    pub fn measure(file: &File, is_encrypted: bool, effort: Effort) -> Result<Self, Error> {
        let len = effort.sample_len_bytes;
        Ok(Self {
            read: best(|| read(file, effort.read_len_max_bytes))?,
            hash: best(|| Ok(hash(len)))?,
            both: is_encrypted.then(|| best(|| decrypt_and_hash(len))).transpose()?,
        })
    }

    /// The least of them, which bounds the opening.
    #[must_use]
    pub fn least(&self) -> f64 {
        self.read.min(self.hash).min(self.both.unwrap_or(f64::INFINITY))
    }
}

fn best(mut rate: impl FnMut() -> Result<f64, Error>) -> Result<f64, Error> {
    (0..ROUNDS).try_fold(0.0_f64, |best, _| Ok(best.max(rate()?)))
}

#[expect(clippy::cast_precision_loss, reason = "rates for people")]
fn rate(bytes: u64, start: Instant) -> f64 {
    bytes as f64 / start.elapsed().as_secs_f64()
}

fn read(mut file: &File, len_max_bytes: u64) -> Result<f64, Error> {
    let failed = |source| Error::Stream { action: "read the file", source };
    file.rewind().map_err(failed)?;
    let mut file = file.take(len_max_bytes);
    let mut buffer = vec![0; READ_STEP_BYTES];
    let (start, mut len) = (Instant::now(), 0);
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(rate(len, start)),
            count => len += count as u64,
        }
    }
}

fn hash(len_bytes: usize) -> f64 {
    let sample = vec![0xA5; len_bytes];
    let start = Instant::now();
    std::hint::black_box(digest(&SHA256, &sample));
    rate(len_bytes as u64, start)
}

fn decrypt_and_hash(len_bytes: usize) -> Result<f64, Error> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let thread = |_| std::thread::Builder::new().spawn_scoped(scope, || work(len_bytes));
        let threads: Vec<_> = (0..processors).map(thread).collect();
        threads.into_iter().try_for_each(|thread| {
            let thread = thread.map_err(|_| failed())?;
            thread.join().unwrap_or_else(|_| Err(failed()))
        })
    })?;
    Ok(rate((processors * len_bytes) as u64, start))
}

/// Decrypts and hashes a sample, a chunk at a time.
fn work(len_bytes: usize) -> Result<(), Error> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).map_err(|_| failed())?;
    let key = LessSafeKey::new(key);
    let nonce = || Nonce::assume_unique_for_key([0; 12]);
    let mut sealed = vec![0; CHUNK_LEN_BYTES];
    let sealing = key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed);
    sealing.map_err(|_| failed())?;
    let mut chunk = sealed.clone();
    for _ in 0..len_bytes / CHUNK_LEN_BYTES {
        chunk.copy_from_slice(&sealed);
        let opened = key.open_in_place(nonce(), Aad::empty(), &mut chunk);
        std::hint::black_box(digest(&SHA256, opened.map_err(|_| failed())?));
    }
    Ok(())
}

fn failed() -> Error {
    Error::Stream { action: "measure decryption", source: std::io::ErrorKind::Other.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_bounds_it() {
        let least = |read, both| OpeningLimits { read, hash: 2.0, both }.least();
        assert!((least(1.0, None) - 1.0).abs() < 1e-9, "the disk");
        assert!((least(9.0, None) - 2.0).abs() < 1e-9, "one thread hashes");
        assert!((least(9.0, Some(1.5)) - 1.5).abs() < 1e-9, "all processors");
    }

    #[test]
    fn every_rate_is_measured() {
        let file = File::open("Cargo.lock").unwrap();
        let limits = OpeningLimits::measure(&file, true, Effort::SHORT).unwrap();
        assert!(limits.read > 0.0 && limits.hash > 0.0 && limits.both.unwrap() > 0.0);
    }
}
