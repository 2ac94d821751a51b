//! Opening a file of a package: from its bytes, encrypted or not, to its plaintext.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::Error;
use super::age_header::{Header, X25519Stanza};
use super::age_stream::Decryptor;
use super::keys::{FileKey, Identity};
use super::pieces::Sink;

/// What every age v1 file begins with.
const AGE_MAGIC: &[u8] = b"age-encryption.org/";

/// Whoever holds the identity: the supervisor for the opener, the operator's file for `cloister`.
pub trait Unwrap {
    /// Unwraps one stanza; `None` when it is another's.
    ///
    /// # Errors
    ///
    /// When the holder cannot be asked.
    fn unwrap_stanza(&mut self, stanza: &X25519Stanza) -> Result<Option<FileKey>, Error>;
}

impl Unwrap for &Identity {
    fn unwrap_stanza(&mut self, stanza: &X25519Stanza) -> Result<Option<FileKey>, Error> {
        Ok(Identity::unwrap_stanza(self, &stanza.ephemeral, &stanza.body))
    }
}

/// Decrypts an age file to `sink`; returns the plaintext's length.
///
/// `progress` is called with the plaintext bytes passed on so far.
///
/// # Errors
///
/// One variant for each check that can fail. What was passed on before must not be used.
pub fn open_age<S: Sink>(
    file: File,
    holder: &mut impl Unwrap,
    decryptor: &mut Decryptor<S::Piece>,
    sink: &mut S,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, Error> {
    let header = Header::read(&mut BufReader::new(FromStart::new(&file)))?;
    let key = find_key(&header, holder)?;
    decryptor.decrypt(Arc::new(file), &header, &key, sink, progress)
}

/// Has the stanzas unwrapped, the first that opens wins, and checks the header's MAC.
///
/// # Errors
///
/// [`Error::NoMatchingIdentity`], [`Error::HeaderMac`], or what the holder says.
pub fn find_key(header: &Header, holder: &mut impl Unwrap) -> Result<FileKey, Error> {
    for stanza in &header.x25519 {
        if let Some(key) = holder.unwrap_stanza(stanza)? {
            header.authenticate(&key)?;
            return Ok(key);
        }
    }
    Err(Error::NoMatchingIdentity {
        x25519_count: header.x25519.len(),
        other_count: header.other_count,
    })
}

/// Copies a plain file to `sink`; returns its length.
///
/// # Errors
///
/// [`Error::Stream`].
pub fn copy_plain(file: &File, sink: &mut impl Sink) -> Result<u64, Error> {
    let failed = |action| move |source| Error::Stream { action, source };
    let mut file = FromStart::new(file);
    loop {
        // Private memory, not splice: pages of the file's cache could change under the reader.
        let mut piece = sink.piece().map_err(failed("take memory"))?;
        let len = fill(&mut file, piece.as_mut()).map_err(failed("read the model"))?;
        if len > 0 {
            sink.put(piece, len).map_err(failed("pass the model on"))?;
        }
        if len < sink.piece_len_bytes() {
            return Ok(file.offset);
        }
    }
}

/// Reads until `buffer` is full or the file ends; returns the bytes that were read.
fn fill(file: &mut FromStart<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// Returns whether a file begins like an age file.
///
/// # Errors
///
/// [`Error::Stream`].
pub fn is_age(file: &File) -> Result<bool, Error> {
    let mut start = Vec::new();
    let read = FromStart::new(file).take(AGE_MAGIC.len() as u64).read_to_end(&mut start);
    read.map_err(|source| Error::Stream { action: "read the model", source })?;
    Ok(start == AGE_MAGIC)
}

/// Reads a file from its start, whatever the descriptor's own place is: a descriptor that was
/// passed on shares that place with its sender.
struct FromStart<'f> {
    file: &'f File,
    offset: u64,
}

impl<'f> FromStart<'f> {
    fn new(file: &'f File) -> Self {
        Self { file, offset: 0 }
    }
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}
