//! Products of bytes on the tile registers of AMX; all else is AVX-512's. A function here can only be
//! entered with the proof [`crate::AmxInt8`].

mod add;
mod direct;
mod gemm;
mod tiles;

pub(crate) use tiles::{is_permitted, peak_steps};
