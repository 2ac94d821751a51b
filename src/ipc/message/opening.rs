//! Between supervisor, opener and loader: one model's way into memory. The bytes go through pipes, not through
//! messages; the one key is that of the one file.

use zeroize::Zeroizing;

use super::KvFormat;

/// Opener to supervisor.
#[derive(Debug)]
pub enum FromOpener {
    /// Unwrap this X25519 stanza (at most 128 times). Answered by `FileKey` or `NoMatch`.
    Unwrap {
        /// The stanza's ephemeral share.
        ephemeral: [u8; 32],
        /// The stanza's body.
        body: [u8; 32],
    },
    /// All plaintext is written.
    Finished {
        /// Plaintext bytes.
        len_bytes: u64,
    },
    /// Refused.
    Refused {
        /// Which check failed.
        check: OpenCheck,
    },
}

/// Supervisor to opener.
pub enum ToOpener {
    /// Open an age file. Descriptors: the file, the pipe's write end.
    OpenAge,
    /// Copy a plain file. Descriptors: the file, the pipe's write end.
    OpenPlain,
    /// That file's key.
    FileKey(Zeroizing<[u8; 16]>),
    /// The identity does not open this stanza.
    NoMatch,
}

/// Which check refused an encrypted file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum OpenCheck {
    /// The header is not an age v1 header, or over a limit.
    AgeHeader = 1,
    /// No stanza opens with the identity.
    NoMatchingIdentity = 2,
    /// The header's MAC is wrong.
    HeaderMac = 3,
    /// A chunk does not authenticate.
    Chunk = 4,
    /// The file ends without its last chunk, or goes on after it.
    Truncated = 5,
    /// The file cannot be read.
    Io = 6,
}

/// Supervisor to loader.
#[derive(Debug)]
pub enum ToLoader {
    /// First message. Descriptor: the pipe's read end.
    Load {
        /// Plaintext bytes to expect, so that memory is reserved once.
        len_max_bytes: u64,
        /// How the worker will keep keys and values; a model that cannot be served so is refused.
        kv: KvFormat,
    },
    /// The digest and signature hold: parse and repack.
    Verified,
}

/// Loader to supervisor.
#[derive(Debug)]
pub enum FromLoader {
    /// All bytes up to the end of the pipe are held.
    Received {
        /// Bytes.
        len_bytes: u64,
    },
    /// How far the repacking is.
    Progress {
        /// Bytes done.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// Packed and sealed. Descriptor: the image.
    Sealed {
        /// Bytes of the image.
        len_bytes: u64,
    },
    /// Refused: a static text that names the check and the field, never file content.
    Refused {
        /// Which check failed.
        check: String,
    },
}
