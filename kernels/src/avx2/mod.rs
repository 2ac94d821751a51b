//! Kernels in 256 bits: AVX2 + FMA, and the same with AVX-VNNI. A function here can only be
//! entered with the proof [`crate::Avx2Fma`], or with [`crate::Avx2Vnni`], which has it.

mod gemm;
mod quantize;
mod unpack;
mod vnni;

pub(crate) use gemm::Blocks;
pub(crate) use quantize::quantize_panel;
