//! Between supervisor, opener and loader: one model's way into memory. The bytes go in sealed memfds, a few at a
//! time, not through messages; the one key is that of the one file.

use zeroize::Zeroizing;

use super::KvFormat;

/// Bytes of a piece of a model on its way from opener to supervisor to loader.
pub const SEGMENT_LEN_BYTES: usize = 4 << 20;
/// Most pieces that were sent and that their receiver has not taken yet.
pub const SEGMENTS_COUNT_MAX: usize = 8;

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
    /// The next piece of the plaintext. Descriptor: a sealed memfd of [`SEGMENT_LEN_BYTES`]; the last may be
    /// shorter. Answered by `Taken`; at most [`SEGMENTS_COUNT_MAX`] are on their way.
    Segment,
    /// All plaintext is sent.
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
    /// Open an age file. Descriptor: the file.
    OpenAge,
    /// Copy a plain file. Descriptor: the file.
    OpenPlain,
    /// That file's key.
    FileKey(Zeroizing<[u8; 16]>),
    /// The identity does not open this stanza.
    NoMatch,
    /// A segment is hashed and handed on.
    Taken,
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
    /// First message.
    Load {
        /// Plaintext bytes to expect, so that memory is reserved once.
        len_max_bytes: u64,
        /// How the worker will keep keys and values; a model that cannot be served so is refused.
        kv: KvFormat,
    },
    /// The next piece of the plaintext. Descriptor: a sealed memfd of [`SEGMENT_LEN_BYTES`]; the last may be
    /// shorter. Answered by `Received`; at most [`SEGMENTS_COUNT_MAX`] are on their way.
    Segment,
    /// That was all; the digest and signature hold: parse and repack.
    Verified,
}

/// Loader to supervisor.
#[derive(Debug)]
pub enum FromLoader {
    /// A segment is mapped.
    Received {
        /// Bytes of all that came.
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
