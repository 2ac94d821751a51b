//! AVX2 + FMA kernels. A function here can only be entered with the proof [`crate::Avx2Fma`].

mod gemm;
mod quantize;
mod unpack;

pub(crate) use quantize::quantize_panel;
