//! The program of all four binaries; the map of the code follows.
//!
#![doc = include_str!("ARCHITECTURE.md")]

pub mod audit;
pub mod cli;
pub mod engine;
pub mod gateway;
pub mod gguf;
pub mod ipc;
pub mod loader;
pub mod opener;
pub mod package;
pub mod sandbox;
pub mod secret;
pub mod spawner;
pub mod supervisor;
pub mod sys;
pub mod template;
pub mod tokenizer;
pub mod worker;
