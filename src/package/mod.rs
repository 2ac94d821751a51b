//! The signed, encrypted model file: OpenSSF Model Signing and age, other people's formats.
//!
//! A package is two or three files beside each other: `model.gguf` or, encrypted,
//! `model.gguf.age`, and the signature `model.gguf.sig` over the plaintext. Opening it:
//!
//! 1. [`signature::verify`] the bundle against the trust folder and its lists: the signed digest is known.
//! 2. Read the age header ([`age_header`]), have one stanza unwrapped, check the header's MAC.
//! 3. Decrypt the chunks ([`age_stream`]); pass them through [`digest::hash_through`].
//! 4. [`statement::Statement::check`] the digest. Only now may anyone parse the bytes.
//!
//! Nothing here decides policy, talks to another process or looks into a model.

pub mod admission;
pub mod age_header;
pub mod age_stream;
pub mod bundle;
pub mod certificate;
mod chain;
pub mod digest;
pub mod digest_lists;
mod error;
pub mod files;
mod json;
pub mod keys;
pub mod open;
pub mod opening_limits;
pub mod pieces;
pub mod quarantine;
pub mod seal;
pub mod signature;
pub mod statement;
pub mod trust;

pub use error::{ChainFault, Error, Fault, HeaderFault};

/// Reads a SHA-256 in hexadecimal, of either case.
pub(crate) fn unhex(digits: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    let digit = |c: u8| char::from(c).to_digit(16);
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let value = digit(pair[0])? << 4 | digit(pair[1])?;
        *byte = u8::try_from(value).expect("two hexadecimal digits are one byte");
    }
    Some(bytes)
}

/// Writes bytes as lowercase hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
