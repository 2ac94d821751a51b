//! The header of an age v1 file: bounded, exact, no key in it.
//!
//! | line | meaning |
//! |---|---|
//! | `age-encryption.org/v1` | version |
//! | `-> type argument...` | a stanza: the file key wrapped to one recipient |
//! | base64, 64 columns, the last line shorter | the stanza's body |
//! | `--- base64(32)` | `HMAC-SHA-256(HKDF(file key, "header"), all bytes up to and with ---)` |
//!
//! Reference tools take any number of stanzas, and seconds of work for each thousand; here both
//! count and length have a limit. Source: C2SP age v1.

use std::io::{BufRead, Read as _};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::hmac;
use zeroize::Zeroizing;

use super::keys::FileKey;
use super::{Error, HeaderFault};

/// Most stanzas in a header.
pub const STANZAS_COUNT_MAX: usize = 128;
/// Longest header, in bytes: 128 post-quantum stanzas of 1.6 KiB, and room.
pub const HEADER_LEN_MAX_BYTES: u64 = 256 << 10;

const VERSION: &[u8] = b"age-encryption.org/v1\n";
const BODY_COLUMNS: usize = 64;

/// A file key wrapped to an X25519 recipient.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct X25519Stanza {
    /// The sender's ephemeral share.
    pub ephemeral: [u8; 32],
    /// The wrapped file key.
    pub body: [u8; 32],
}

/// A header of the right form; its MAC is checked by [`Header::authenticate`].
#[derive(Debug)]
pub struct Header {
    /// The stanzas that an X25519 identity may open, in order.
    pub x25519: Vec<X25519Stanza>,
    /// How many stanzas are of other kinds (passphrase, SSH, post-quantum, ...).
    pub other_count: usize,
    /// The bytes received, up to and with `---`.
    authenticated: Vec<u8>,
    mac: [u8; 32],
    len_bytes: u64,
}

impl Header {
    /// Reads a header; what follows in `source` is the payload.
    ///
    /// # Errors
    ///
    /// [`Error::AgeHeader`] with the fault, or [`Error::Stream`].
    pub fn read(source: &mut impl BufRead) -> Result<Self, Error> {
        let mut lines = Lines { source, received: Vec::new() };
        if lines.next()? != VERSION {
            return Err(fault(HeaderFault::Version));
        }
        let mut kinds = Kinds::default();
        loop {
            let start = lines.received.len();
            let line = lines.next()?;
            if let Some(rest) = line.strip_prefix(b"---") {
                let mac = parse_mac(rest)?;
                let len_bytes = lines.received.len() as u64;
                if kinds.count == 0 {
                    return Err(fault(HeaderFault::Line));
                }
                if kinds.scrypt && kinds.count > 1 {
                    return Err(fault(HeaderFault::ScryptNotAlone));
                }
                lines.received.truncate(start + 3);
                return Ok(Self {
                    other_count: kinds.count - kinds.x25519.len(),
                    x25519: kinds.x25519,
                    authenticated: lines.received,
                    mac,
                    len_bytes,
                });
            }
            if kinds.count == STANZAS_COUNT_MAX {
                return Err(fault(HeaderFault::TooManyStanzas));
            }
            let arguments = parse_arguments(line)?;
            let body = read_body(&mut lines)?;
            kinds.add(&arguments, &body)?;
        }
    }

    /// Returns the header's length: where the payload begins.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Checks the MAC over the bytes received; the file key opened this very header.
    ///
    /// # Errors
    ///
    /// [`Error::HeaderMac`].
    pub fn authenticate(&self, key: &FileKey) -> Result<(), Error> {
        let mac_key = derive(key, &[], b"header");
        let mac_key = hmac::Key::new(hmac::HMAC_SHA256, &*mac_key);
        hmac::verify(&mac_key, &self.authenticated, &self.mac).map_err(|_| Error::HeaderMac)
    }
}

/// `HKDF-SHA-256(salt, label, file key)`, 32 bytes.
pub(super) fn derive(key: &FileKey, salt: &[u8], label: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut derived = Zeroizing::new([0; 32]);
    let pseudorandom = Salt::new(HKDF_SHA256, salt).extract(key.expose());
    let labels = [label];
    let expanded = pseudorandom.expand(&labels, HKDF_SHA256);
    let filled = expanded.and_then(|okm| okm.fill(&mut *derived));
    filled.expect("32 bytes are one block of HKDF-SHA-256");
    derived
}

/// The stanzas by kind.
#[derive(Default)]
struct Kinds {
    x25519: Vec<X25519Stanza>,
    count: usize,
    scrypt: bool,
}

impl Kinds {
    fn add(&mut self, arguments: &[Vec<u8>], body: &[u8]) -> Result<(), Error> {
        self.count += 1;
        match arguments {
            [kind, rest @ ..] if kind == b"X25519" => {
                let wrong = || fault(HeaderFault::X25519);
                let [share] = rest else {
                    return Err(wrong());
                };
                let share = BASE64_STANDARD_NO_PAD.decode(share).map_err(|_| wrong())?;
                self.x25519.push(X25519Stanza {
                    ephemeral: share.try_into().map_err(|_| wrong())?,
                    body: body.try_into().map_err(|_| wrong())?,
                });
            }
            [kind, ..] if kind == b"scrypt" => self.scrypt = true,
            _ => {}
        }
        Ok(())
    }
}

/// Reads lines and keeps every byte of them, up to the limit.
struct Lines<'a, R> {
    source: &'a mut R,
    received: Vec<u8>,
}

impl<R: BufRead> Lines<'_, R> {
    /// Returns the next line with its newline.
    fn next(&mut self) -> Result<&[u8], Error> {
        let start = self.received.len();
        let left_bytes = HEADER_LEN_MAX_BYTES - start as u64;
        // A wrong first line is found without reading a whole model that has no newline.
        let limit_bytes = if start == 0 { VERSION.len() as u64 } else { left_bytes };
        let read = self.source.take(limit_bytes).read_until(b'\n', &mut self.received);
        let n = read.map_err(|source| Error::Stream { action: "read the age header", source })?;
        let line = &self.received[start..];
        if line.ends_with(b"\n") || start == 0 {
            return Ok(line);
        }
        let too_long = n as u64 == left_bytes;
        Err(fault(if too_long { HeaderFault::TooLong } else { HeaderFault::Truncated }))
    }
}

/// Splits `-> type argument...`.
fn parse_arguments(line: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let line = line.strip_prefix(b"->").ok_or(fault(HeaderFault::Line))?;
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let rest = line.strip_prefix(b" ").ok_or(fault(HeaderFault::Arguments))?;
    let arguments: Vec<_> = rest.split(|c| *c == b' ').map(<[u8]>::to_vec).collect();
    if arguments.iter().any(|a| a.is_empty() || !a.iter().all(u8::is_ascii_graphic)) {
        return Err(fault(HeaderFault::Arguments));
    }
    Ok(arguments)
}

/// Reads full lines and the short one that ends a body.
fn read_body<R: BufRead>(lines: &mut Lines<'_, R>) -> Result<Vec<u8>, Error> {
    let mut base64 = Vec::new();
    loop {
        let line = lines.next()?;
        let columns = line.strip_suffix(b"\n").unwrap_or(line);
        if columns.len() > BODY_COLUMNS {
            return Err(fault(HeaderFault::Body));
        }
        base64.extend_from_slice(columns);
        if columns.len() < BODY_COLUMNS {
            break;
        }
    }
    BASE64_STANDARD_NO_PAD.decode(base64).map_err(|_| fault(HeaderFault::Body))
}

/// Parses what follows `---`.
fn parse_mac(rest: &[u8]) -> Result<[u8; 32], Error> {
    let base64 = rest.strip_prefix(b" ").and_then(|rest| rest.strip_suffix(b"\n"));
    let mac = base64.and_then(|base64| BASE64_STANDARD_NO_PAD.decode(base64).ok());
    mac.and_then(|mac| mac.try_into().ok()).ok_or(fault(HeaderFault::Mac))
}

fn fault(fault: HeaderFault) -> Error {
    Error::AgeHeader(fault)
}
