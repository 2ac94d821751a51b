//! The one integration binary: each module proves one promise.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod gguf;
mod gguf_file;
mod quants;
mod support;
