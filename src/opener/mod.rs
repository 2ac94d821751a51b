//! The opener: parses the age file and decrypts it in parallel; holds one file key, never an identity.
//!
//! It lives for one file. Its powers: read the file and write the pipe that came with the order,
//! ask the supervisor to unwrap a stanza of fixed size. Its life:
//!
//! 1. Take one order, `OpenAge` or `OpenPlain`, with the file and the pipe.
//! 2. `OpenAge`: parse the header, have stanzas unwrapped until one is ours, check the MAC,
//!    decrypt. `OpenPlain`: copy.
//! 3. Close the pipe, then say `Finished`, or `Refused` with the check that failed.
//!
//! What it wrote before a refusal is authentic but not whole: the supervisor gives it to nobody.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use crate::ipc::message::{FromOpener, OpenCheck, ToOpener};
use crate::ipc::{self, Channel};
use crate::package;
use crate::package::age_header::X25519Stanza;
use crate::package::age_stream::Decryptor;
use crate::package::keys::FileKey;
use crate::package::open::{Unwrap, copy_plain, open_age};

/// Why an opener ends without a report.
#[derive(Debug)]
pub enum Error {
    /// The control channel broke.
    Control(ipc::Error),
    /// The supervisor said what it may not say now.
    Order,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control(error) => write!(f, "opener: control channel: {error}"),
            Self::Order => write!(f, "opener: an answer came in place of an order"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Control(error) => Some(error),
            Self::Order => None,
        }
    }
}

/// Serves one order and reports how it ended.
///
/// # Errors
///
/// When the supervisor is gone or broke protocol; a file that is refused is no error.
pub fn serve(control: &Channel, decryptor: &mut Decryptor) -> Result<(), Error> {
    let (order, descriptors) = control.recv::<ToOpener>().map_err(Error::Control)?;
    let opened = match (&order, <[OwnedFd; 2]>::try_from(descriptors)) {
        (ToOpener::OpenAge, Ok([file, pipe])) => {
            let mut pipe = File::from(pipe);
            let mut holder = Supervisor { control };
            open_age(File::from(file), &mut holder, decryptor, &mut pipe, &mut |_| {})
        }
        (ToOpener::OpenPlain, Ok([file, pipe])) => {
            copy_plain(&File::from(file), &mut File::from(pipe))
        }
        _ => return Err(Error::Order),
    };
    // The pipe is closed by now: the supervisor reads its end before this report.
    let report = match opened {
        Ok(len_bytes) => FromOpener::Finished { len_bytes },
        Err(error) => FromOpener::Refused { check: failed_check(&error) },
    };
    control.send(&report, &[]).map_err(Error::Control)
}

/// The supervisor, as the holder of the identity.
struct Supervisor<'c> {
    control: &'c Channel,
}

impl Unwrap for Supervisor<'_> {
    fn unwrap_stanza(&mut self, stanza: &X25519Stanza) -> Result<Option<FileKey>, package::Error> {
        let broken = |error: io::Error| package::Error::Stream {
            action: "ask the supervisor for the file key",
            source: error,
        };
        let question = FromOpener::Unwrap { ephemeral: stanza.ephemeral, body: stanza.body };
        self.control.send(&question, &[]).map_err(|error| broken(io::Error::other(error)))?;
        let answer = self.control.recv::<ToOpener>();
        match answer.map_err(|error| broken(io::Error::other(error)))? {
            (ToOpener::FileKey(key), _) => Ok(Some(FileKey::new(key))),
            (ToOpener::NoMatch, _) => Ok(None),
            _ => Err(broken(io::ErrorKind::InvalidData.into())),
        }
    }
}

/// What the supervisor is told of an error: the check, nothing of the file.
fn failed_check(error: &package::Error) -> OpenCheck {
    match error {
        package::Error::AgeHeader(_) => OpenCheck::AgeHeader,
        package::Error::NoMatchingIdentity { .. } => OpenCheck::NoMatchingIdentity,
        package::Error::HeaderMac => OpenCheck::HeaderMac,
        package::Error::Chunk { .. } => OpenCheck::Chunk,
        package::Error::Truncated | package::Error::TrailingData => OpenCheck::Truncated,
        _ => OpenCheck::Io,
    }
}
