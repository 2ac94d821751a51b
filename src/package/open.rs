//! Opening a file of a package: from its bytes, encrypted or not, to its plaintext.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::Error;
use super::age_header::{Header, X25519Stanza};
use super::age_stream::Decryptor;
use super::keys::{FileKey, Identity};

/// Bytes that a plain file is copied in.
const BUFFER_LEN_BYTES: usize = 256 << 10;
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

/// Decrypts an age file to `writer`; returns the plaintext's length.
///
/// `progress` is called with the plaintext bytes written so far.
///
/// # Errors
///
/// One variant for each check that can fail. What was written before must not be used.
pub fn open_age(
    file: File,
    holder: &mut impl Unwrap,
    decryptor: &mut Decryptor,
    writer: &mut impl Write,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, Error> {
    let header = Header::read(&mut BufReader::new(FromStart::new(&file)))?;
    let key = find_key(&header, holder)?;
    decryptor.decrypt(Arc::new(file), &header, &key, writer, progress)
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

/// Copies a plain file to `writer`; returns its length.
///
/// # Errors
///
/// [`Error::Stream`].
pub fn copy_plain(file: &File, writer: &mut impl Write) -> Result<u64, Error> {
    // Private memory, not splice: pages of the file's cache could change under the reader.
    let mut buffer = Zeroizing::new(vec![0; BUFFER_LEN_BYTES]);
    let mut copied_bytes = 0;
    let mut file = FromStart::new(file);
    loop {
        let n = match file.read(&mut buffer) {
            Ok(0) => return Ok(copied_bytes),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(Error::Stream { action: "read the model", source }),
        };
        let passed = writer.write_all(&buffer[..n]);
        passed.map_err(|source| Error::Stream { action: "pass the model on", source })?;
        copied_bytes += n as u64;
    }
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
