//! Kernels: the arithmetic of the engine, and the only home of SIMD `unsafe`.
//!
//! Every operation has a plain version in `reference`; that version is the
//! meaning of the operation, and every other version is tested against it.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(feature = "cuda")]
pub mod cuda;
mod feed_forward;
#[cfg(test)]
mod feed_forward_tests;
pub mod formats;
mod gemm;
mod gemm_memory;
#[cfg(test)]
mod gemm_tests;
mod gemm_tiles;
mod isa;
pub mod limits;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod ops;
mod output;
mod packed;
mod packed_source;
mod pool;
mod prefetch;
mod quantize;
mod quantize_tiles;
mod reference;
mod shares;

pub use feed_forward::{FeedForward, Hidden, feed_forward};
pub use formats::{TensorType, dequantize};
pub use gemm::{Precision, Product, Write, gemm};
#[cfg(target_arch = "x86_64")]
pub use isa::{AmxInt8, Avx2Fma, Avx2Vnni, Avx512Vnni};
pub use isa::{Isa, IsaError};
#[cfg(target_arch = "aarch64")]
pub use isa::{Neon, NeonDotprod};
pub use packed::{Packed, pack, packed_size};
pub use pool::Pool;
pub use quantize::Activations;
