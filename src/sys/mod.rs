//! The system calls that nix lacks; with `kernels`, the only home of `unsafe`.
