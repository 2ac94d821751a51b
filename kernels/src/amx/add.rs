//! What becomes of the products of a sub-block: scaled and added in vectors with a row in each lane, in
//! the order that [`crate::gemm()`] prescribes.

use core::arch::x86_64::*;

/// Adds the products of a sub-block and of the first `$tokens` tokens to their totals; `$x` are the scales,
/// the biases and, read where there is a `$min`, the sums of the tokens. Written out for each: a loop would
/// have the totals in memory.
macro_rules! add_tokens {
    ($totals:ident, $dots:ident, $x:ident, $scale:ident, $min:expr, $tokens:ident) => {
        add_tokens!(
            $totals, $dots, $x, $scale, $min, $tokens,
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
        )
    };
    (
        $totals:ident, $dots:ident, $x:ident, $scale:ident, $min:expr, $tokens:ident,
        $($token:literal)*
    ) => {$(
        if $token < $tokens {
            let x_scale = _mm512_set1_ps($x[0][$token]);
            let x_bias = _mm512_set1_ps($x[1][$token]);
            let steps = _mm512_fmadd_ps($crate::amx::add::magic(&$dots[$token]), x_scale, x_bias);
            let total = _mm512_fmadd_ps(steps, $scale, $totals[$token]);
            let total = match $min {
                Some(min) => _mm512_fmadd_ps(_mm512_set1_ps($x[2][$token]), min, total),
                None => total,
            };
            // Without this the compiler loads what all tokens need first, and has no registers left.
            $totals[$token] = _mm512_castsi512_ps($crate::avx512::here(_mm512_castps_si512(total)));
        }
    )*};
}

pub(super) use add_tokens;

/// Loads products as floats, [`crate::quantize::MAGIC`] added to each.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn magic(dots: &[i32; 16]) -> __m512 {
    // SAFETY: `dots` is 64 readable bytes, and `loadu` takes any alignment.
    let dots = unsafe { _mm512_loadu_si512(dots.as_ptr().cast()) };
    let bits = _mm512_add_epi32(_mm512_set1_epi32(crate::quantize::MAGIC_BITS), dots);
    _mm512_castsi512_ps(bits)
}
