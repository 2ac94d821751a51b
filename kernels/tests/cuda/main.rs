//! The kernels of the card, run on the CPU: the same sources through a C++ compiler, a fiber for each
//! CUDA thread, against the plain kernels. No card is needed, and none is used.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::tests_outside_test_module, reason = "an integration test has no such module")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

mod attention;
mod between;
mod check_script;
mod data;
mod driver;
mod embedding;
mod emulator;
mod faults;
mod limits;
mod mutants;
mod products;
mod roofline;
mod selection;
