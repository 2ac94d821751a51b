//! The signed, encrypted model file: OpenSSF Model Signing and age, other people's formats.
//!
//! A package is two or three files beside each other: `model.gguf` or, encrypted,
//! `model.gguf.age`, and the signature `model.gguf.sig` over the plaintext. Opening it:
//!
//! 1. [`signature::verify`] the bundle against the trust folder: the signed digest is known.
//! 2. Read the age header ([`age_header`]), have one stanza unwrapped, check the header's MAC.
//! 3. Decrypt the chunks ([`age_stream`]); pass them through [`digest::hash_through`].
//! 4. [`statement::Statement::check`] the digest. Only now may anyone parse the bytes.
//!
//! Nothing here decides policy, talks to another process or looks into a model.

pub mod age_header;
pub mod age_stream;
pub mod bundle;
mod chain;
pub mod digest;
mod error;
pub mod files;
mod json;
pub mod keys;
pub mod open;
pub mod seal;
pub mod signature;
pub mod statement;
pub mod trust;

pub use error::{ChainFault, Error, Fault, HeaderFault};

/// Writes bytes as lowercase hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
