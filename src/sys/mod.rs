//! The system calls that nix lacks; with `kernels`, the only home of `unsafe`.
//!
//! Each function is one system call with its C types turned into Rust ones; what the calls are for
//! and in which order they come is said in `sandbox`, `spawner` and `ipc`.

#![expect(unsafe_code, reason = "system calls that nix lacks")]

pub mod clock;
pub mod erasing;
pub mod fork;
mod huge;
pub mod memory;
pub mod numa;
pub mod process;
pub mod processors;
pub mod random;
pub mod socket;
