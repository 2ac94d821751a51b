//! The payload of an age v1 file, decrypted by several threads, each where the plaintext is to lie, and passed on
//! in order by one of them.
//!
//! `key = HKDF-SHA-256(nonce, "payload", file key)`; then chunks of 64 KiB plaintext,
//! `ChaCha20-Poly1305(key, counter (11 bytes, big endian) || last flag)`.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 16 | nonce |
//! | 16 + i · 65,552 | 65,552 | chunk i; the last one is 17 to 65,552 long, or 16 if the file is empty |
//!
//! A chunk is only ever taken with the flag that its place in the file demands, so a file that was
//! cut at a chunk's border or had chunks put behind it does not decrypt. What was passed on before a
//! later chunk fails is authentic but incomplete: the caller must not use it before the end.
//! Source: C2SP age v1.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};
use zeroize::Zeroizing;

use super::Error;
use super::age_header::{Header, derive};
use super::keys::FileKey;
use super::pieces::Sink;

/// Plaintext of a chunk, in bytes.
pub const CHUNK_LEN_BYTES: usize = 64 << 10;
/// A chunk's authentication tag, in bytes.
const TAG_LEN_BYTES: usize = 16;
/// A whole chunk in the file, in bytes.
const SEALED_LEN_BYTES: usize = CHUNK_LEN_BYTES + TAG_LEN_BYTES;
/// The payload's nonce, in bytes.
const NONCE_LEN_BYTES: u64 = 16;
/// A file of known length that several threads read at once.
pub trait ReadAt: Send + Sync + 'static {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    ///
    /// Also when the file is shorter than that.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Returns the file's length.
    ///
    /// # Errors
    ///
    /// When it cannot be asked.
    fn len_bytes(&self) -> io::Result<u64>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }
}

/// Where the chunks of one payload lie; made from lengths alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Layout {
    first_offset: u64,
    chunks_count: u64,
    last_len_bytes: usize,
}

impl Layout {
    /// Lays out a payload that begins at `offset` of a file of `file_len_bytes`.
    fn new(offset: u64, file_len_bytes: u64) -> Result<Self, Error> {
        let sealed_len = SEALED_LEN_BYTES as u64;
        let first_offset = offset.checked_add(NONCE_LEN_BYTES).ok_or(Error::Truncated)?;
        let len_bytes = file_len_bytes.checked_sub(first_offset).ok_or(Error::Truncated)?;
        let chunks_count = len_bytes.div_ceil(sealed_len);
        let before_last = chunks_count.saturating_sub(1) * sealed_len;
        let last_len_bytes =
            usize::try_from(len_bytes - before_last).expect("a chunk is 65,552 bytes at most");
        let shortest = if chunks_count == 1 { TAG_LEN_BYTES } else { TAG_LEN_BYTES + 1 };
        if last_len_bytes < shortest {
            return Err(Error::Truncated);
        }
        Ok(Self { first_offset, chunks_count, last_len_bytes })
    }

    fn is_last(&self, index: u64) -> bool {
        index + 1 == self.chunks_count
    }

    /// Returns offset and length of a chunk in the file.
    fn chunk(&self, index: u64) -> (u64, usize) {
        let offset = self.first_offset + index * SEALED_LEN_BYTES as u64;
        (offset, if self.is_last(index) { self.last_len_bytes } else { SEALED_LEN_BYTES })
    }
}

/// One payload: what every thread needs to decrypt any chunk of it.
struct Payload {
    source: Arc<dyn ReadAt>,
    key: LessSafeKey,
    layout: Layout,
}

impl Payload {
    /// Decrypts the chunks from `first` on, one behind the other, until `plaintext` or the file ends; returns the
    /// plaintext's length.
    fn decrypt_piece(&self, first: u64, plaintext: &mut [u8]) -> Result<usize, Error> {
        let chunks = plaintext.chunks_exact_mut(CHUNK_LEN_BYTES);
        (first..self.layout.chunks_count)
            .zip(chunks)
            .try_fold(0, |before, (index, chunk)| Ok(before + self.decrypt(index, chunk)?))
    }

    /// Reads a chunk and decrypts it in place; returns its plaintext length.
    fn decrypt(&self, index: u64, chunk: &mut [u8]) -> Result<usize, Error> {
        let (offset, sealed_len) = self.layout.chunk(index);
        let len = sealed_len - TAG_LEN_BYTES;
        let chunk = &mut chunk[..len];
        let mut tag = [0; TAG_LEN_BYTES];
        self.read(chunk, offset)?;
        self.read(&mut tag, offset + len as u64)?;
        let is_last = self.layout.is_last(index);
        match self.open(index, is_last, tag, chunk) {
            true => Ok(len),
            false => Err(self.explain(index, is_last)),
        }
    }

    /// Decrypts in place; returns whether the tag is the right one.
    fn open(&self, index: u64, is_last: bool, tag: [u8; TAG_LEN_BYTES], chunk: &mut [u8]) -> bool {
        let (nonce, tag) = (nonce(index, is_last), Tag::from(tag));
        self.key.open_in_place_separate_tag(nonce, Aad::empty(), tag, chunk, 0..).is_ok()
    }

    /// Says why a chunk did not open: would it with the other flag?
    fn explain(&self, index: u64, is_last: bool) -> Error {
        let (offset, len) = self.layout.chunk(index);
        let mut chunk = Zeroizing::new(vec![0; len]);
        if let Err(error) = self.read(&mut chunk, offset) {
            return error;
        }
        match self.key.open_in_place(nonce(index, !is_last), Aad::empty(), &mut chunk) {
            Ok(_) if is_last => Error::Truncated,
            Ok(_) => Error::TrailingData,
            Err(_) => Error::Chunk { index },
        }
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.source.read_exact_at(buffer, offset).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated,
            _ => Error::Stream { action: "read the encrypted file", source },
        })
    }
}

/// `nonce = counter (11 bytes, big endian) || last flag`
fn nonce(index: u64, is_last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&index.to_be_bytes());
    nonce[11] = u8::from(is_last);
    Nonce::assume_unique_for_key(nonce)
}

/// A piece of the plaintext on its way.
struct Batch<P> {
    payload: Arc<Payload>,
    /// Its first chunk.
    first: u64,
    piece: P,
    /// The plaintext's length, once decrypted.
    len: Result<usize, Error>,
}

/// Batches that wait to be decrypted, by whichever thread is free.
#[derive(Debug)]
struct Queue<P> {
    waiting: Mutex<Waiting<P>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Waiting<P> {
    batches: VecDeque<Batch<P>>,
    is_closed: bool,
}

impl<P> Queue<P> {
    fn new() -> Self {
        let waiting = Waiting { batches: VecDeque::new(), is_closed: false };
        Self { waiting: Mutex::new(waiting), changed: Condvar::new() }
    }

    fn push(&self, batch: Batch<P>) {
        self.lock().batches.push_back(batch);
        self.changed.notify_one();
    }

    /// Takes the first batch, if there is one.
    fn take(&self) -> Option<Batch<P>> {
        self.lock().batches.pop_front()
    }

    /// Waits for a batch; `None` when no more will come.
    fn wait(&self) -> Option<Batch<P>> {
        let mut waiting = self.lock();
        loop {
            if let Some(batch) = waiting.batches.pop_front() {
                return Some(batch);
            }
            if waiting.is_closed {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<P>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Threads that decrypt beside the caller's; made before a sandbox forbids new ones.
#[derive(Debug)]
pub struct Decryptor<P> {
    queue: Arc<Queue<P>>,
    done: Receiver<Batch<P>>,
    threads: Vec<JoinHandle<()>>,
}

impl<P: AsMut<[u8]> + Send + 'static> Decryptor<P> {
    /// Starts threads that decrypt beside the one that calls [`Decryptor::decrypt`]; returns when all of
    /// them run. Without any, the caller does it all.
    ///
    /// # Errors
    ///
    /// [`Error::Stream`] when a thread cannot be started.
    pub fn new(helpers_count: usize) -> Result<Self, Error> {
        Self::entering(helpers_count, || {})
    }

    /// As [`Decryptor::new`]; each thread calls `enter` once all of them run, and then takes work.
    ///
    /// # Errors
    ///
    /// As [`Decryptor::new`].
    pub fn entering(
        helpers_count: usize,
        enter: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let enter = Arc::new(enter);
        let queue = Arc::new(Queue::new());
        let (done_tx, done_rx) = channel::<Batch<P>>();
        // The start of a thread makes system calls that a seccomp filter may forbid afterwards.
        let started = Arc::new(Barrier::new(helpers_count + 1));
        let mut threads = Vec::new();
        for _ in 0..helpers_count {
            let (queue, done) = (Arc::clone(&queue), done_tx.clone());
            let (started, enter) = (Arc::clone(&started), Arc::clone(&enter));
            let thread = thread::Builder::new().name("decrypt".to_owned());
            let thread = thread
                .spawn(move || {
                    started.wait();
                    enter();
                    work(&queue, &done);
                })
                .map_err(|source| Error::Stream { action: "start a thread", source })?;
            threads.push(thread);
        }
        started.wait();
        Ok(Self { queue, done: done_rx, threads })
    }

    /// Decrypts the payload behind `header` and passes it on in order; returns its length.
    ///
    /// `progress` is called with the plaintext bytes passed on so far.
    ///
    /// # Errors
    ///
    /// [`Error::Chunk`], [`Error::Truncated`], [`Error::TrailingData`] or [`Error::Stream`]; what
    /// was passed on until then must not be used.
    pub fn decrypt(
        &mut self,
        source: Arc<dyn ReadAt>,
        header: &Header,
        key: &FileKey,
        sink: &mut impl Sink<Piece = P>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64, Error> {
        let read = |source| Error::Stream { action: "read the encrypted file", source };
        let file_len_bytes = source.len_bytes().map_err(read)?;
        let layout = Layout::new(header.len_bytes(), file_len_bytes)?;
        let mut nonce = [0; 16];
        source.read_exact_at(&mut nonce, header.len_bytes()).map_err(read)?;
        let key = derive(key, &nonce, b"payload");
        let key = UnboundKey::new(&CHACHA20_POLY1305, &*key).expect("the key is 32 bytes");
        let payload = Arc::new(Payload { source, key: LessSafeKey::new(key), layout });
        self.run(&payload, sink, progress)
    }

    fn run(
        &mut self,
        payload: &Arc<Payload>,
        sink: &mut impl Sink<Piece = P>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64, Error> {
        let chunks_in = sink.piece_len_bytes() / CHUNK_LEN_BYTES;
        let mut firsts = (0..payload.layout.chunks_count).step_by(chunks_in);
        let most = (self.threads.len() + 1) * sink.pieces_per_thread();
        let (mut under_way, mut next, mut passed) = (0, 0, Ok(0));
        let mut waiting: Vec<Batch<P>> = Vec::new();
        loop {
            while passed.is_ok() && under_way < most {
                let Some(first) = firsts.next() else { break };
                match self.push(payload, first, sink) {
                    Ok(()) => under_way += 1,
                    Err(error) => passed = Err(error),
                }
            }
            if under_way == 0 {
                return passed;
            }
            let Some(place) = waiting.iter().position(|batch| batch.first == next) else {
                waiting.push(self.next_done());
                waiting.extend(self.done.try_iter());
                continue;
            };
            let batch = waiting.swap_remove(place);
            under_way -= 1;
            next += chunks_in as u64;
            passed = passed.and_then(|before| Ok(before + batch.pass(sink)?));
            if let Ok(passed_bytes) = passed {
                progress(passed_bytes);
            }
        }
    }

    /// Has a piece decrypted, from chunk `first` on.
    fn push(
        &self,
        payload: &Arc<Payload>,
        first: u64,
        sink: &mut impl Sink<Piece = P>,
    ) -> Result<(), Error> {
        let piece = sink.piece();
        let piece = piece.map_err(|source| Error::Stream { action: "take memory", source })?;
        self.queue.push(Batch { payload: Arc::clone(payload), first, piece, len: Ok(0) });
        Ok(())
    }

    /// Returns a decrypted batch: one that a thread has done, or else one that is done here, so that the
    /// thread that passes them on never waits while there is something to decrypt.
    fn next_done(&self) -> Batch<P> {
        if let Ok(batch) = self.done.try_recv() {
            return batch;
        }
        if let Some(mut batch) = self.queue.take() {
            batch.decrypt();
            return batch;
        }
        self.done.recv().expect("the threads give every batch back")
    }
}

impl<P> Drop for Decryptor<P> {
    fn drop(&mut self) {
        self.queue.close();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so; there is nothing to add.
            let _ = thread.join();
        }
    }
}

impl<P: AsMut<[u8]>> Batch<P> {
    fn decrypt(&mut self) {
        self.len = self.payload.decrypt_piece(self.first, self.piece.as_mut());
    }

    /// Passes the plaintext on; returns its length.
    fn pass(self, sink: &mut impl Sink<Piece = P>) -> Result<u64, Error> {
        let len = self.len?;
        if len == 0 {
            return Ok(0);
        }
        let passed = sink.put(self.piece, len);
        passed.map_err(|source| Error::Stream { action: "pass the model on", source })?;
        Ok(len as u64)
    }
}

impl<P> fmt::Debug for Batch<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({})", self.first)
    }
}

/// A thread's life: decrypt batches until there are no more.
fn work<P: AsMut<[u8]>>(queue: &Queue<P>, done: &Sender<Batch<P>>) {
    while let Some(mut batch) = queue.wait() {
        batch.decrypt();
        if done.send(batch).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_follows_from_lengths_alone() {
        let sealed = SEALED_LEN_BYTES as u64;
        let layout = |len| Layout::new(100, 116 + len).map(|l| (l.chunks_count, l.last_len_bytes));
        for len in [0, 15, sealed + 1, sealed + 16, 5 * sealed + 3] {
            assert!(matches!(layout(len), Err(Error::Truncated)), "{len} bytes");
        }
        assert!(matches!(Layout::new(100, 115), Err(Error::Truncated)));
        assert!(matches!(Layout::new(u64::MAX, u64::MAX), Err(Error::Truncated)));
        for (len, want) in [
            (16, (1, 16)),
            (17, (1, 17)),
            (sealed, (1, SEALED_LEN_BYTES)),
            (sealed + 17, (2, 17)),
            (3 * sealed, (3, SEALED_LEN_BYTES)),
        ] {
            assert_eq!(layout(len).unwrap(), want, "{len} bytes");
        }
        let layout = Layout::new(100, 116 + 2 * sealed + 40).unwrap();
        assert_eq!(layout.chunk(0), (116, SEALED_LEN_BYTES));
        assert_eq!(layout.chunk(2), (116 + 2 * sealed, 40));
        assert!(layout.is_last(2) && !layout.is_last(1));
    }

    #[test]
    fn a_chunk_number_beyond_32_bits_counts_on() {
        let bytes = |index, last| *nonce(index, last).as_ref();
        assert_eq!(bytes(0x0001_0203_0405_0607, false), [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 0]);
        assert_eq!(bytes(1, true), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    }
}
