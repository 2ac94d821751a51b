//! Layers on a card: a model answers as on the CPU. No card is needed: see `stand_in`.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::tests_outside_test_module, reason = "an integration test has no such module")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

mod bench;
mod engine;
mod erasing;
mod golden;
mod library;
mod plan;
mod program;
mod selection;
mod shapes;
mod stages;
mod stand_in;
mod steps;
mod tiny;
