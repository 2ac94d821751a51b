//! Sealing: a model file becomes an age file for one or more X25519 recipients.

use std::io::{self, Read, Write};

use age::x25519::Recipient;
use zeroize::Zeroizing;

use super::Error;
use super::age_header::STANZAS_COUNT_MAX;

/// Bytes that are encrypted at once: a whole number of chunks.
const BUFFER_LEN_BYTES: usize = 1 << 20;

/// Parses an `age1...` recipient.
///
/// # Errors
///
/// [`Error::NotX25519`]; post-quantum, SSH and plugin recipients are not opened by Cloister.
pub fn parse_recipient(text: &str) -> Result<Recipient, Error> {
    text.parse().map_err(|_| Error::NotX25519 { what: "recipient" })
}

/// What failed when the writer of [`seal`] did, as [`Error::Stream`] says it.
pub const WRITE: &str = "write the encrypted file";

/// Encrypts all of `reader` to `recipients`; returns the plaintext's length.
///
/// `progress` is called with the plaintext bytes read so far.
///
/// # Errors
///
/// [`Error::Generate`] without recipients or with more than a header may hold; [`Error::Stream`].
pub fn seal(
    recipients: &[Recipient],
    reader: &mut impl Read,
    writer: &mut impl Write,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, Error> {
    if recipients.len() > STANZAS_COUNT_MAX {
        return Err(Error::Generate { what: "header for more than 128 recipients" });
    }
    let encryptor = age::Encryptor::with_recipients(recipients.iter().map(|r| r as _))
        .map_err(|_| Error::Generate { what: "age header" })?;
    let write = |source| Error::Stream { action: WRITE, source };
    let mut stream = encryptor.wrap_output(writer).map_err(write)?;
    let mut buffer = Zeroizing::new(vec![0; BUFFER_LEN_BYTES]);
    let mut read_bytes = 0;
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(Error::Stream { action: "read the model", source }),
        };
        stream.write_all(&buffer[..n]).map_err(write)?;
        read_bytes += n as u64;
        progress(read_bytes);
    }
    stream.finish().map_err(write)?;
    Ok(read_bytes)
}
