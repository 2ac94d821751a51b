//! Kernels: the arithmetic of the engine, and the only home of SIMD `unsafe`.
//!
//! Every operation has a plain version in `reference`; that version is the
//! meaning of the operation, and every other version is tested against it.

pub mod formats;

pub use formats::{TensorType, dequantize};
