//! Sixteen lanes in the registers of AVX2 and AVX-512.

use core::arch::x86_64::{
    __m128i, __m256, __m256i, __m512, _mm_loadl_epi64, _mm_loadu_si128, _mm256_cvtepi8_epi32,
    _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_mul_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps,
    _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_set1_ps,
    _mm512_storeu_ps,
};

use half::f16;

use super::{LANES, Lanes, Vector};
use crate::isa::{Avx2Fma, Avx512Vnni};

/// AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Avx2(pub(in crate::ops) Avx2Fma);

impl Vector for Avx2 {
    const WIDE: bool = false;
    type Reg = [__m256; 2];

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has AVX2, FMA and F16C.
        unsafe { splat_256(value) }
    }

    #[inline(always)]
    fn load(self, lanes: &Lanes) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has AVX2, FMA and F16C.
        unsafe { load_256(lanes) }
    }

    #[inline(always)]
    fn store(self, lanes: Self::Reg, target: &mut Lanes) {
        // SAFETY: the proof in `self` says that the CPU has AVX2, FMA and F16C.
        unsafe { store_256(lanes, target) }
    }

    #[inline(always)]
    fn mul(self, a: Self::Reg, b: Self::Reg) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has AVX2, FMA and F16C.
        unsafe { mul_256(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Reg, b: Self::Reg, c: Self::Reg) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has AVX2, FMA and F16C.
        unsafe { mul_add_256(a, b, c) }
    }

    #[inline(always)]
    fn widen(self, source: &[f16; LANES]) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has AVX2, FMA and F16C.
        unsafe { widen_256(source) }
    }

    #[inline(always)]
    fn widen_bytes(self, source: &[i8; LANES]) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has AVX2, FMA and F16C.
        unsafe { widen_bytes_256(source) }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn splat_256(value: f32) -> [__m256; 2] {
    [_mm256_set1_ps(value); 2]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_256(lanes: &Lanes) -> [__m256; 2] {
    let [low, high] = halves(lanes);
    [load_8(low), load_8(high)]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_8(lanes: &[f32; 8]) -> __m256 {
    // SAFETY: `lanes` is 8 readable floats, and the load takes any alignment.
    unsafe { _mm256_loadu_ps(lanes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store_256(lanes: [__m256; 2], target: &mut Lanes) {
    for (target, lanes) in target.as_chunks_mut::<8>().0.iter_mut().zip(lanes) {
        // SAFETY: `target` is 8 floats, and the store takes any alignment.
        unsafe { _mm256_storeu_ps(target.as_mut_ptr(), lanes) };
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn mul_256(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
    [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn mul_add_256(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
    [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen_256(source: &[f16; LANES]) -> [__m256; 2] {
    let [low, high] = halves(source);
    [widen_8(low), widen_8(high)]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen_8(source: &[f16; 8]) -> __m256 {
    // SAFETY: `source` is 16 readable bytes, and the load takes any alignment.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(source.as_ptr().cast::<__m128i>()) })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen_bytes_256(source: &[i8; LANES]) -> [__m256; 2] {
    let [low, high] = halves(source);
    [widen_bytes_8(low), widen_bytes_8(high)]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen_bytes_8(source: &[i8; 8]) -> __m256 {
    // SAFETY: `source` is 8 readable bytes, and the load takes any alignment.
    let bytes = unsafe { _mm_loadl_epi64(source.as_ptr().cast::<__m128i>()) };
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
}

/// Returns the two halves.
#[inline(always)]
fn halves<T>(lanes: &[T; LANES]) -> &[[T; 8]; 2] {
    lanes.as_chunks().0.try_into().expect("sixteen are two times eight")
}

/// AVX-512 and all of AVX2.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Avx512(pub(in crate::ops) Avx512Vnni);

impl Vector for Avx512 {
    const WIDE: bool = true;
    type Reg = __m512;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has AVX-512 F.
        unsafe { splat_512(value) }
    }

    #[inline(always)]
    fn load(self, lanes: &Lanes) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has AVX-512 F.
        unsafe { load_512(lanes) }
    }

    #[inline(always)]
    fn store(self, lanes: Self::Reg, target: &mut Lanes) {
        // SAFETY: the proof in `self` says that the CPU has AVX-512 F.
        unsafe { store_512(lanes, target) }
    }

    #[inline(always)]
    fn mul(self, a: Self::Reg, b: Self::Reg) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has AVX-512 F.
        unsafe { mul_512(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Reg, b: Self::Reg, c: Self::Reg) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has AVX-512 F.
        unsafe { mul_add_512(a, b, c) }
    }

    #[inline(always)]
    fn widen(self, source: &[f16; LANES]) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has AVX-512 F.
        unsafe { widen_512(source) }
    }

    #[inline(always)]
    fn widen_bytes(self, source: &[i8; LANES]) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has AVX-512 F.
        unsafe { widen_bytes_512(source) }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn splat_512(value: f32) -> __m512 {
    _mm512_set1_ps(value)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_512(lanes: &Lanes) -> __m512 {
    // SAFETY: `lanes` is 16 readable floats, and the load takes any alignment.
    unsafe { _mm512_loadu_ps(lanes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_512(lanes: __m512, target: &mut Lanes) {
    // SAFETY: `target` is 16 floats, and the store takes any alignment.
    unsafe { _mm512_storeu_ps(target.as_mut_ptr(), lanes) };
}

#[inline]
#[target_feature(enable = "avx512f")]
fn mul_512(a: __m512, b: __m512) -> __m512 {
    _mm512_mul_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn mul_add_512(a: __m512, b: __m512, c: __m512) -> __m512 {
    _mm512_fmadd_ps(a, b, c)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen_512(source: &[f16; LANES]) -> __m512 {
    // SAFETY: `source` is 32 readable bytes, and the load takes any alignment.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(source.as_ptr().cast::<__m256i>()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen_bytes_512(source: &[i8; LANES]) -> __m512 {
    // SAFETY: `source` is 16 readable bytes, and the load takes any alignment.
    let bytes = unsafe { _mm_loadu_si128(source.as_ptr().cast::<__m128i>()) };
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
}
