//! The only way processes talk: bounded frames, exact codecs, a table of who may say what.

pub mod message;
