//! SHA-256 of what passes by.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use ring::digest::{Context, SHA256};
use zeroize::Zeroizing;

use super::Error;
use crate::ipc::message::Digest;

/// Bytes that are read, hashed and written at once; stays in a core's second-level cache.
const BUFFER_LEN_BYTES: usize = 256 << 10;
/// Buffers, so that the hash may be some behind while bytes are read and written.
const BUFFERS_COUNT: usize = 8;

/// A buffer and how much of it is filled.
type Buffer = Arc<(Zeroizing<Vec<u8>>, usize)>;

/// Copies all of `reader` to `writer` and returns SHA-256 and length of what passed.
///
/// The hash runs on a thread of its own while the next bytes are read and written. The bytes
/// hashed are the bytes written: both come from one private buffer.
///
/// # Errors
///
/// [`Error::Stream`] when reading or writing fails.
pub fn hash_through(
    reader: &mut impl Read,
    writer: &mut impl Write,
) -> Result<(Digest, u64), Error> {
    thread::scope(|scope| {
        let (filled_tx, filled_rx) = sync_channel(BUFFERS_COUNT);
        let (done_tx, done_rx) = sync_channel(BUFFERS_COUNT);
        let hasher = thread::Builder::new()
            .name("hash".to_owned())
            .spawn_scoped(scope, move || hash_all(&filled_rx, &done_tx))
            .map_err(|source| Error::Stream { action: "start the hash thread", source })?;
        let passed = pass(reader, writer, &filled_tx, &done_rx);
        drop(filled_tx);
        let digest = hasher.join().expect("hashing does not panic");
        passed.map(|len_bytes| (digest, len_bytes))
    })
}

/// Reads into a ring of buffers, lends each to the hash and writes it.
fn pass(
    reader: &mut impl Read,
    writer: &mut impl Write,
    filled: &SyncSender<Buffer>,
    done: &Receiver<()>,
) -> Result<u64, Error> {
    let mut ring: Vec<Buffer> = Vec::with_capacity(BUFFERS_COUNT);
    let mut len_bytes = 0;
    for turn in 0.. {
        let slot = turn % BUFFERS_COUNT;
        if turn < BUFFERS_COUNT {
            ring.push(Arc::new((Zeroizing::new(vec![0; BUFFER_LEN_BYTES]), 0)));
        } else {
            done.recv().expect("the hash thread lives as long as the buffers come");
        }
        let (bytes, n) = Arc::get_mut(&mut ring[slot]).expect("the hash is done with this buffer");
        *n = read_full(reader, bytes)
            .map_err(|source| Error::Stream { action: "read the model", source })?;
        if *n == 0 {
            break;
        }
        len_bytes += *n as u64;
        filled.send(Arc::clone(&ring[slot])).expect("the hash thread lives until the last buffer");
        let (bytes, n) = &*ring[slot];
        writer
            .write_all(&bytes[..*n])
            .map_err(|source| Error::Stream { action: "pass the model on", source })?;
    }
    Ok(len_bytes)
}

/// Hashes buffers in order; says of each when it may be used again.
fn hash_all(filled: &Receiver<Buffer>, done: &SyncSender<()>) -> Digest {
    let mut context = Context::new(&SHA256);
    for buffer in filled {
        context.update(&buffer.0[..buffer.1]);
        drop(buffer);
        if done.send(()).is_err() {
            break;
        }
    }
    Digest(context.finish().as_ref().try_into().expect("SHA-256 is 32 bytes"))
}

/// Fills the buffer as far as the stream reaches.
fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use ring::digest::digest;

    use super::*;

    #[test]
    fn hashes_what_it_passes_on_at_every_buffer_border() {
        let borders = [0, 1, BUFFER_LEN_BYTES, BUFFERS_COUNT * BUFFER_LEN_BYTES];
        for len in borders.into_iter().flat_map(|n| [n.saturating_sub(1), n, n + 1, n * 2 + 7]) {
            let bytes: Vec<u8> = (0..=250).cycle().take(len).collect();
            let mut passed = Vec::new();
            let (got, n) = hash_through(&mut bytes.as_slice(), &mut passed).unwrap();
            assert_eq!(n, len as u64);
            assert!(passed == bytes);
            assert_eq!(got.0, digest(&SHA256, &bytes).as_ref());
        }
    }

    #[test]
    fn a_closed_reader_ends_it() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = hash_through(&mut io::repeat(0), &mut Closed).unwrap_err();
        assert!(matches!(error, Error::Stream { action: "pass the model on", .. }));
    }
}
