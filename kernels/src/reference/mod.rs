//! Plain Rust kernels: slow, obvious, and the meaning of every other kernel.

mod gemm;

pub(crate) use gemm::Plain;
