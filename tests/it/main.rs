//! The one integration binary: each module proves one promise.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::tests_outside_test_module, reason = "an integration test has no such module")]

mod appliance;
mod audit;
mod bench;
mod binaries;
#[path = "../probe/bpf.rs"]
mod bpf;
mod cuda;
mod demo;
mod engine;
mod filters;
mod gateway;
mod gguf;
mod gguf_file;
mod golden;
mod inspect;
mod jail;
mod kernels;
mod log;
mod package;
mod quants;
mod supervisor;
mod support;
mod synth;
mod systemd;
mod template;
mod tokenizer;
mod traps;
