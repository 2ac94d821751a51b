//! The card: NVIDIA's driver at run time, memory, and launches of the kernels of `kernels/cuda`.
//!
//! What each kernel computes, its arguments and its grid stand in `kernels/cuda/README.md`. The functions
//! here that launch one measure every buffer and check every index first. Memory is zeroed before it is
//! given back. Nothing here knows of models or requests.

mod batch;
mod between;
mod buffer;
mod cache;
mod card;
mod driver;
mod error;
mod graph;
mod heads;
mod pinned;
mod products;
mod selection;
mod shape;
mod step;
mod timer;

pub use batch::{Batch, BatchLimits, Contents};
pub use between::{Delta, Embedding, Rows, add_norm, gate, quantize};
pub use buffer::{Buffer, HostSource, HostTarget, Item};
pub use cache::{Cache, CacheShape, PageType};
pub use card::{Card, Memory};
pub use driver::{Device, Driver};
pub use error::CudaError;
pub use graph::Graph;
pub use heads::{HEAD_DIM_MAX, Heads, Preparation};
pub use pinned::Pinned;
pub use products::{Forms, Input, Matrix, Product, multiply, reads_bytes};
pub use selection::Selection;
pub use shape::Shape;
pub use step::Step;
pub use timer::Timer;

/// The kernels as machine code for several cards.
static IMAGE: &[u8] = include_bytes!("../../cuda/kernels.fatbin");

/// Every kernel of the image.
pub const KERNELS: &[&str] = &[
    "add_norm",
    "attention_combine",
    "attention_decode_f16_1",
    "attention_decode_f16_2",
    "attention_decode_f16_4",
    "attention_decode_f16_8",
    "attention_decode_f32_1",
    "attention_decode_f32_2",
    "attention_decode_f32_4",
    "attention_decode_f32_8",
    "attention_decode_q8_0_1",
    "attention_decode_q8_0_2",
    "attention_decode_q8_0_4",
    "attention_decode_q8_0_8",
    "attention_prompt_f16_128",
    "attention_prompt_f16_256",
    "attention_prompt_f16_64",
    "attention_prompt_f32_128",
    "attention_prompt_f32_256",
    "attention_prompt_f32_64",
    "attention_prompt_q8_0_128",
    "attention_prompt_q8_0_256",
    "attention_prompt_q8_0_64",
    "embed_rows",
    "embed_scan",
    "float_product_1",
    "float_product_8",
    "gate",
    "gemm_q4_0",
    "gemm_q4_1",
    "gemm_q4_k",
    "gemm_q5_0",
    "gemm_q5_1",
    "gemm_q5_k",
    "gemm_q6_k",
    "gemm_q8_0",
    "limit_float",
    "limit_int8",
    "limit_read",
    "matvec_1",
    "matvec_2",
    "matvec_4",
    "matvec_8",
    "prepare_heads_f16",
    "prepare_heads_f32",
    "prepare_heads_q8_0",
    "quantize",
    "select_token",
    "zero",
    "zero_pages",
];

/// Most bytes of shared memory that a launch of a kernel gives: of a `gemm_*`, in the README's formula.
const SHARED_MAX: i32 = 90_368;

/// Returns whether a kernel's shared memory is given by its launch.
fn has_large_shared(kernel: &str) -> bool {
    kernel.starts_with("gemm_")
}
