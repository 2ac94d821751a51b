//! AVX-512 kernels. A function here can only be entered with the proof [`crate::Avx512Vnni`].

mod gemm;
mod quantize;
mod unpack;
mod wide;

pub(crate) use quantize::{quantize_panel, quantize_token};
pub(crate) use unpack::{
    StepScales, group_bytes, high_part, load_lanes, low_part, signed, store, store_lanes,
};
pub(crate) use wide::here;
