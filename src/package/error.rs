//! What can be wrong with a model package; no variant ever holds a key or a byte of a file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::digest_lists::Revocable;
use super::hex;
use crate::ipc::message::Digest;

/// What is wrong with one field of a bundle, of its payload or of a key file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The field is not there.
    Missing,
    /// The field has another JSON type than it must.
    WrongType,
    /// The object holds a member that the format does not know.
    UnknownMember,
    /// Not canonical base64.
    NotBase64,
    /// Not 64 hexadecimal digits.
    NotHex,
    /// Not exactly one element.
    NotOne,
    /// A known field with a value that Cloister does not take.
    Unsupported,
}

/// What is wrong with a certificate chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChainFault {
    /// A certificate does not parse.
    Malformed,
    /// The leaf or an issuer is not valid yet.
    NotYetValid,
    /// The leaf or an issuer has expired.
    Expired,
    /// No root in the trust folder issued this chain.
    UnknownIssuer,
    /// The leaf is not for code signing.
    Usage,
    /// The chain breaks another rule of RFC 5280.
    Invalid,
}

/// What is wrong with an age header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderFault {
    /// The first line is not `age-encryption.org/v1`.
    Version,
    /// The file ends within the header.
    Truncated,
    /// Longer than the limit.
    TooLong,
    /// More stanzas than the limit.
    TooManyStanzas,
    /// A line that is neither a stanza nor the end.
    Line,
    /// A stanza without arguments, or with an empty or unprintable one.
    Arguments,
    /// A stanza's body is not canonical base64 in lines of 64 columns.
    Body,
    /// An X25519 stanza of another shape than one share and 32 bytes.
    X25519,
    /// A passphrase beside other recipients.
    ScryptNotAlone,
    /// The last line is not `--- ` and 43 characters of base64.
    Mac,
}

/// What can be wrong with a model package.
#[derive(Debug)]
pub enum Error {
    /// A file operation failed.
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A stream broke (the path is known to the other side).
    Stream {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The path is a symbolic link or no regular file.
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// The file exists and may not be replaced.
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// Another user could have put or changed this.
    Ownership {
        /// The path.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// A small file (bundle, key) is longer than its limit.
    TooLong {
        /// Which kind of file.
        what: &'static str,
        /// The limit.
        limit_bytes: u64,
    },
    /// A PEM key file that cannot be used.
    Key {
        /// The file.
        path: PathBuf,
        /// What it was to hold.
        what: &'static str,
    },
    /// A private key that everybody may read.
    KeyExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is encrypted and no identity was given.
    IdentityMissing,
    /// The trust folder holds more files than the limit.
    TrustTooMany {
        /// The limit.
        limit: usize,
    },
    /// There is no signature beside a model.
    SignatureMissing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// There is no trust folder.
    TrustMissing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// What should be the trust folder is a file.
    TrustNotFolder {
        /// The file.
        path: PathBuf,
    },
    /// The trust folder holds no key.
    TrustEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// A line of a list of digests is none.
    DigestList {
        /// The list.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// What was kept of an admission does not parse.
    Admission {
        /// The file.
        path: PathBuf,
    },
    /// A note of the quarantine does not parse.
    Note {
        /// The file.
        path: PathBuf,
    },
    /// The model lies in quarantine.
    Quarantined {
        /// The note beside it.
        note: PathBuf,
    },
    /// The signer or the model is revoked.
    Revoked {
        /// What of it.
        what: Revocable,
        /// The remark of the list's line, or its digest.
        entry: String,
    },
    /// There is a list of allowed models, and this one is not on it.
    NotAllowed {
        /// SHA-256 of the model.
        digest: Digest,
    },
    /// A JSON text does not parse.
    Json {
        /// Which text.
        part: &'static str,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// A JSON object names a member twice.
    DuplicateMember {
        /// Which text.
        part: &'static str,
    },
    /// A field is wrong.
    Field {
        /// Its path in the bundle or payload.
        field: &'static str,
        /// How.
        fault: Fault,
    },
    /// The payload lists another number of resources than one.
    ResourceCount {
        /// How many.
        count: usize,
    },
    /// The resource is neither `.` nor the subject.
    ResourceName,
    /// The resource's name is absolute or climbs out of its folder.
    UnsafeName,
    /// The subject's digest is not SHA-256 of the resource digests.
    RootDigest,
    /// The signature is for a file of another name.
    SubjectName,
    /// No key in the trust folder has the hint of the bundle.
    UnknownKey,
    /// The key's curve cannot be verified here.
    CurveUnsupported {
        /// The curve.
        curve: &'static str,
    },
    /// The certificate chain does not hold.
    Chain(ChainFault),
    /// The signature does not verify.
    Signature,
    /// The bytes are not those that were signed.
    DigestMismatch,
    /// The age header is wrong.
    AgeHeader(HeaderFault),
    /// No stanza opens with the identity.
    NoMatchingIdentity {
        /// X25519 stanzas that were tried.
        x25519_count: usize,
        /// Stanzas of kinds that Cloister does not open.
        other_count: usize,
    },
    /// The age header's MAC is wrong.
    HeaderMac,
    /// A chunk does not authenticate.
    Chunk {
        /// Its number, from 0.
        index: u64,
    },
    /// The payload ends without its last chunk.
    Truncated,
    /// The payload goes on after its last chunk.
    TrailingData,
    /// An age recipient or identity that is not X25519.
    NotX25519 {
        /// What was given.
        what: &'static str,
    },
    /// A key, nonce or certificate could not be made.
    Generate {
        /// What was to be made.
        what: &'static str,
    },
}

impl Error {
    /// Returns whether the package was refused, as opposed to an operation that failed.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        !matches!(
            self,
            Self::Io { .. }
                | Self::Stream { .. }
                | Self::Exists { .. }
                | Self::Key { .. }
                | Self::KeyExposed { .. }
                | Self::IdentityMissing
                | Self::SignatureMissing { .. }
                | Self::TrustMissing { .. }
                | Self::TrustNotFolder { .. }
                | Self::TrustEmpty { .. }
                | Self::DigestList { .. }
                | Self::Admission { .. }
                | Self::Note { .. }
                | Self::TrustTooMany { .. }
                | Self::NotX25519 { .. }
                | Self::Generate { .. }
        )
    }

    /// Returns the file that the error names itself, where it does.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Io { path, .. }
            | Self::NotRegular { path }
            | Self::Exists { path }
            | Self::Ownership { path, .. }
            | Self::Key { path, .. }
            | Self::KeyExposed { path, .. }
            | Self::SignatureMissing { path }
            | Self::TrustMissing { path }
            | Self::TrustNotFolder { path }
            | Self::TrustEmpty { path }
            | Self::Admission { path }
            | Self::Note { path }
            | Self::Quarantined { note: path }
            | Self::DigestList { path, .. } => Some(path),
            _ => None,
        }
    }

    /// Returns what the operator can do about it, where there is one thing to do.
    #[must_use]
    pub fn fix(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotRegular { .. } => "give the file itself, not a link to it",
            Self::Exists { .. } => "choose another name with --out, or replace it with --force",
            Self::Ownership { .. } => {
                "make it owned by root or the service, and writable by no one else (chmod go-w)"
            }
            Self::Key { .. } => {
                "make one with `cloister keygen`, or convert: openssl pkcs8 -topk8 -nocrypt -in KEY -out NEW"
            }
            Self::KeyExposed { .. } => "keep it to its owner: chmod 600",
            Self::IdentityMissing => "give the age identity that opens it: --identity FILE",
            Self::SignatureMissing { .. } => {
                "put the signer's signature there, make one with `cloister model sign`, or name another: \
                 --signature FILE, for the service signature in cloister.toml"
            }
            Self::TrustMissing { .. } => {
                "make it and put the signer's public key (PEM) into it, or name another: \
                 --trust DIR, for the service keys.trust in cloister.toml"
            }
            Self::TrustNotFolder { .. } => {
                "put the signer's public key (PEM) into a folder, and name the folder"
            }
            Self::TrustEmpty { .. } | Self::UnknownKey => {
                "put the signer's public key (PEM) into the trust folder, if you trust it"
            }
            Self::DigestList { .. } => {
                "write lines as sha256sum does: 64 hexadecimal digits, two spaces, a printable remark"
            }
            Self::Admission { .. } => {
                "remove it, and have the model signed with a valid certificate"
            }
            Self::Quarantined { .. } => {
                "see why: cloister model quarantine list; take it out: cloister model quarantine release"
            }
            Self::Revoked { .. } => {
                "take a model that is not revoked, from a signer that is not; the list is \
                 revoked.sha256 in the trust folder"
            }
            Self::NotAllowed { .. } => {
                "if you allow it: sha256sum MODEL.gguf >> allowed.sha256, in the trust folder"
            }
            Self::CurveUnsupported { .. } => "have it signed with a P-256 or P-384 key",
            Self::Chain(ChainFault::UnknownIssuer) => {
                "put the root certificate (PEM) into the trust folder, if you trust it"
            }
            Self::Chain(ChainFault::Expired) => "have it signed again with a valid certificate",
            Self::ResourceCount { .. } | Self::ResourceName => {
                "sign the GGUF file itself, not its folder: cloister model sign FILE --key KEY"
            }
            Self::Field { field: FIELD_METHOD | FIELD_HASH_TYPE | FIELD_SYMLINKS, .. } => {
                "sign again with the defaults: cloister model sign FILE --key KEY"
            }
            Self::DigestMismatch | Self::Signature | Self::RootDigest => {
                "fetch the model and its signature again from a source you trust"
            }
            Self::Chunk { .. } | Self::Truncated | Self::TrailingData | Self::HeaderMac => {
                "the encrypted file is damaged or was changed: copy or seal it again"
            }
            Self::NoMatchingIdentity { .. } => {
                "use the identity whose age1... recipient the file was sealed to"
            }
            Self::AgeHeader(HeaderFault::Version) => {
                "not a binary age file; armored (PEM) age files are not read: age -d | age -r"
            }
            Self::NotX25519 { .. } => "use an X25519 key: age1... and AGE-SECRET-KEY-1...",
            _ => return None,
        })
    }
}

/// The field that says how the file was cut.
pub(crate) const FIELD_METHOD: &str = "predicate.serialization.method";
/// The field that names the hash.
pub(crate) const FIELD_HASH_TYPE: &str = "predicate.serialization.hash_type";
/// The field that says whether links were followed.
pub(crate) const FIELD_SYMLINKS: &str = "predicate.serialization.allow_symlinks";

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "is missing",
            Self::WrongType => "has the wrong JSON type",
            Self::UnknownMember => "has a member that the format does not know",
            Self::NotBase64 => "is not canonical base64",
            Self::NotHex => "is not a SHA-256 in hexadecimal",
            Self::NotOne => "must hold exactly one element",
            Self::Unsupported => "has a value that is not supported",
        })
    }
}

impl fmt::Display for ChainFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "does not parse",
            Self::NotYetValid => "is not valid yet",
            Self::Expired => "has expired",
            Self::UnknownIssuer => "does not end at a root of the trust folder",
            Self::Usage => "is not for code signing",
            Self::Invalid => "is not a valid chain",
        })
    }
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "the first line is not `age-encryption.org/v1`",
            Self::Truncated => "the file ends within it",
            Self::TooLong => "it is longer than 256 KiB",
            Self::TooManyStanzas => "it has more than 128 recipients",
            Self::Line => "a line is neither a stanza nor the end",
            Self::Arguments => "a stanza has a missing, empty or unprintable argument",
            Self::Body => "a stanza's body is not canonical base64 in lines of 64 columns",
            Self::X25519 => "an X25519 stanza has the wrong shape",
            Self::ScryptNotAlone => "a passphrase stands beside other recipients",
            Self::Mac => "the MAC line has the wrong shape",
        })
    }
}

impl fmt::Display for Error {
    #[expect(clippy::too_many_lines, reason = "a table: what each error says")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { action, path, source } => write!(f, "{action} {}: {source}", path.display()),
            Self::Stream { action, source } => write!(f, "{action}: {source}"),
            Self::NotRegular { path } => {
                write!(f, "{} is a symbolic link or no regular file", path.display())
            }
            Self::Exists { path } => write!(f, "{} exists already", path.display()),
            Self::Ownership { path, uid, mode } => write!(
                f,
                "{} (owner {uid}, mode {mode:03o}) could be changed by another user",
                path.display()
            ),
            Self::TooLong { what, limit_bytes } => {
                write!(f, "the {what} is longer than {limit_bytes} bytes")
            }
            Self::Key { path, what } => write!(f, "{} holds no {what}", path.display()),
            Self::KeyExposed { path, mode } => {
                write!(f, "{} holds a secret and has mode {mode:03o}", path.display())
            }
            Self::IdentityMissing => f.write_str("the file is encrypted and there is no identity"),
            Self::TrustTooMany { limit } => {
                write!(f, "the trust folder holds more than {limit} files")
            }
            Self::SignatureMissing { path } => {
                write!(f, "there is no signature {}", path.display())
            }
            Self::TrustMissing { path } => {
                write!(f, "there is no trust folder {}", path.display())
            }
            Self::TrustNotFolder { path } => {
                write!(f, "{} is not a folder of trusted keys", path.display())
            }
            Self::TrustEmpty { path } => write!(f, "{} holds no public key", path.display()),
            Self::DigestList { path, line } => {
                write!(f, "{}, line {line}: no SHA-256 and remark", path.display())
            }
            Self::Admission { path } => write!(f, "{} is no admission", path.display()),
            Self::Note { path } => write!(f, "{} is no note of a quarantine", path.display()),
            Self::Quarantined { note } => write!(f, "quarantined: {}", note.display()),
            Self::Revoked { what, entry } => {
                let what = match what {
                    Revocable::Key => "the signer's key",
                    Revocable::Certificate => "a certificate of the signer",
                    Revocable::Model => "the model",
                };
                write!(f, "{what} is revoked: {entry}")
            }
            Self::NotAllowed { digest } => {
                write!(f, "the model is not on the list of allowed ones: {}", hex(&digest.0))
            }
            Self::Json { part, line, column } => {
                write!(f, "the {part} is not JSON at line {line}, column {column}")
            }
            Self::DuplicateMember { part } => write!(f, "the {part} names a member twice"),
            Self::Field { field, fault } => write!(f, "{field} {fault}"),
            Self::ResourceCount { count } => {
                write!(f, "predicate.resources lists {count} files; a model is exactly one")
            }
            Self::ResourceName => {
                f.write_str("predicate.resources[0].name is neither `.` nor the subject's name")
            }
            Self::UnsafeName => {
                f.write_str("predicate.resources[0].name is absolute or holds `..`")
            }
            Self::RootDigest => {
                f.write_str("subject[0].digest.sha256 does not match the listed resource")
            }
            Self::SubjectName => f.write_str("subject[0].name is another file's name"),
            Self::UnknownKey => f.write_str("the signer's key is not in the trust folder"),
            Self::CurveUnsupported { curve } => write!(f, "{curve} keys are not supported"),
            Self::Chain(fault) => write!(f, "the signer's certificate {fault}"),
            Self::Signature => f.write_str("the signature does not verify"),
            Self::DigestMismatch => f.write_str("the file is not the one that was signed"),
            Self::AgeHeader(fault) => write!(f, "the age header is wrong: {fault}"),
            Self::NoMatchingIdentity { x25519_count, other_count } => write!(
                f,
                "the identity opens none of the {x25519_count} X25519 recipients \
                 ({other_count} of other kinds are not supported)"
            ),
            Self::HeaderMac => f.write_str("the age header's MAC does not match"),
            Self::Chunk { index } => write!(f, "encrypted chunk {index} does not authenticate"),
            Self::Truncated => f.write_str("the encrypted file ends without its last chunk"),
            Self::TrailingData => f.write_str("the encrypted file goes on after its last chunk"),
            Self::NotX25519 { what } => write!(f, "the {what} is not an age X25519 key"),
            Self::Generate { what } => write!(f, "no {what} could be made"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } | Self::Stream { source, .. } => Some(source),
            _ => None,
        }
    }
}
