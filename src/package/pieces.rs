//! The plaintext of a file on its way: pieces of memory that are filled by several threads and passed on in order.

use std::io::{self, Write};

use zeroize::Zeroizing;

use super::age_stream::CHUNK_LEN_BYTES;

/// Bytes of a piece that a [`Passed`] writes; small enough to stay in a second-level cache.
const PIECE_LEN_BYTES: usize = 8 * CHUNK_LEN_BYTES;

/// Where plaintext goes.
pub trait Sink {
    /// Memory for a part of it, which may be more than is used.
    type Piece: AsMut<[u8]> + Send + 'static;

    /// The length of a piece: a multiple of an age chunk's plaintext, in bytes.
    fn piece_len_bytes(&self) -> usize;

    /// How many pieces may be under way for each thread: one is filled, the others wait.
    fn pieces_per_thread(&self) -> usize;

    /// Returns memory for the next part.
    ///
    /// # Errors
    ///
    /// When there is none.
    fn piece(&mut self) -> io::Result<Self::Piece>;

    /// Takes the next part: the first `len` bytes of `piece`, which are all of it but at the end.
    ///
    /// # Errors
    ///
    /// When it cannot be passed on.
    fn put(&mut self, piece: Self::Piece, len: usize) -> io::Result<()>;
}

/// Pieces that are written one behind the other, and used again.
#[derive(Debug)]
pub struct Passed<W> {
    writer: W,
    free: Vec<Zeroizing<Vec<u8>>>,
}

impl<W: Write> Passed<W> {
    /// Passes plaintext on to `writer`.
    pub fn to(writer: W) -> Self {
        Self { writer, free: Vec::new() }
    }
}

impl<W: Write> Sink for Passed<W> {
    type Piece = Zeroizing<Vec<u8>>;

    fn piece_len_bytes(&self) -> usize {
        PIECE_LEN_BYTES
    }

    fn pieces_per_thread(&self) -> usize {
        // Enough that neither the threads nor the writer wait for the other's wake-up.
        6
    }

    fn piece(&mut self) -> io::Result<Self::Piece> {
        Ok(self.free.pop().unwrap_or_else(|| Zeroizing::new(vec![0; PIECE_LEN_BYTES])))
    }

    fn put(&mut self, piece: Self::Piece, len: usize) -> io::Result<()> {
        self.writer.write_all(&piece[..len])?;
        self.free.push(piece);
        Ok(())
    }
}
