//! Who did what, never what was said: the append-only, signed, tamper-evident log.
//!
//! On disk it is a C2SP tlog-tiles folder, which other people's tools read. No event carries a
//! prompt, an answer, a token or a key; digests are keyed, so that they are useless without a
//! principal's key, and destroying that key erases them.

mod bundles;
mod carried;
mod copies;
mod copy;
mod disk;
mod error;
mod journal;
mod lanes;
pub mod log;
pub mod merkle;
pub mod note;
mod open;
pub mod principal_keys;
pub mod proof;
pub mod proof_file;
pub mod record;
pub mod retention;
pub mod rotation;
mod settle;
pub mod snapshot;
mod tail;
pub mod tiles;
pub mod verify;
pub mod wrapping;

#[cfg(test)]
mod tests;

pub use copies::{CopyState, Mode};
pub use error::Error;
pub use log::{Found, Log};
pub use note::{Checkpoint, Signer, Verifier, Witness};
pub use principal_keys::{PrincipalKey, PrincipalKeys};
pub use record::{Event, Record};
pub use retention::Retention;
pub use rotation::Rotation;
pub use snapshot::Snapshot;
pub use wrapping::WrappingKey;
