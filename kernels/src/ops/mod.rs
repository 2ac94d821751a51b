//! The operations between the matrix products: norms, rotations, gates, attention.
//!
//! Each operation is written once, over arrays of 16 lanes with `mul_add`, and compiled for every
//! instruction set: plain as the reference, and inside functions that enable AVX2 or AVX-512, where
//! the compiler makes vectors of the arrays (of NEON too: ARM has it everywhere). Sums have one
//! order, written down here, so all give the same bits; the tests hold them to it.
//!
//! Nothing here allocates, and no branch or address depends on a value.

mod attention;
mod attention_page;
mod attention_split;
mod choice;
mod elementwise;
mod gate;
mod kv_pages;
mod lanes;
mod norm;
mod rope;
mod select;
#[cfg(test)]
mod tests;

pub use attention::{AttentionShape, Place, attention};
pub use choice::Choice;
pub use elementwise::{add, add_bias, scale};
pub use gate::Gate;
pub(crate) use gate::gate;
pub use kv_pages::{KV_BLOCK_LEN, KvPages, KvPagesMut, PAGE_LEN, store_kv};
pub use norm::rms_norm;
pub use rope::{Rope, RopePairs};
pub use select::{nth_largest, threshold_of_weight, weigh};

/// Calls `$body(vector, args..)` compiled for the instruction set `$isa`.
macro_rules! per_isa {
    ($isa:expr, $body:ident, $($arg:ident: $ty:ty),+ $(,)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2(proof: crate::isa::Avx2Fma, $($arg: $ty),+) {
            $body(crate::ops::lanes::Avx2(proof), $($arg),+);
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
        fn avx512(proof: crate::isa::Avx512Vnni, $($arg: $ty),+) {
            $body(crate::ops::lanes::Avx512(proof), $($arg),+);
        }
        match $isa {
            crate::Isa::Reference => $body(crate::ops::lanes::Plain, $($arg),+),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `proof` says that the CPU has AVX2, FMA and F16C.
            crate::Isa::Avx2(proof) => unsafe { avx2(proof, $($arg),+) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above; the greater proof holds the lesser.
            crate::Isa::AvxVnni(proof) => unsafe { avx2(proof.avx2(), $($arg),+) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `proof` says that the CPU has AVX-512 F, BW, VL, DQ, and AVX2, FMA and F16C.
            crate::Isa::Avx512(proof) => unsafe { avx512(proof, $($arg),+) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above; the greater proof holds the lesser.
            crate::Isa::Amx(proof) => unsafe { avx512(proof.avx512(), $($arg),+) },
            // Nothing to enable: every function of this architecture has NEON.
            #[cfg(target_arch = "aarch64")]
            crate::Isa::Neon(proof) => $body(crate::ops::lanes::Neon(proof), $($arg),+),
            #[cfg(target_arch = "aarch64")]
            crate::Isa::Dotprod(proof) => $body(crate::ops::lanes::Neon(proof.neon()), $($arg),+),
        }
    }};
}
use per_isa;

use crate::pool::{Disjoint, Pool};

/// Values that one task of a parallel region works on at least: a region costs about 2 µs.
const VALUES_A_TASK: usize = 16 * 1024;

/// Calls `task(first_row, rows)` for parts of `out: [n, row_len]`, in parallel where it pays.
fn over_rows(
    pool: &Pool,
    out: &mut [f32],
    row_len: usize,
    task: &(dyn Fn(usize, &mut [f32]) + Sync),
) {
    assert!(row_len > 0 && out.len().is_multiple_of(row_len), "the output is whole rows");
    let n_rows = out.len() / row_len;
    let rows_a_task = VALUES_A_TASK.div_ceil(row_len);
    let parts = Disjoint::new(out);
    pool.run(n_rows.div_ceil(rows_a_task), &|index| {
        let first = index * rows_a_task;
        let n_rows = rows_a_task.min(n_rows - first);
        // SAFETY: each index has rows of its own, and `run` calls the task once for each index.
        let rows = unsafe { parts.part(first * row_len, n_rows * row_len) };
        task(first, rows);
    });
}
