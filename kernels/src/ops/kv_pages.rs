//! The pages of the cache: how keys and values lie in them, are written and are read.
//!
//! A page holds [`PAGE_LEN`] positions. For each KV head it has the keys, `[head_dim][32]`, so
//! that lanes are positions, then the values, `[32][head_dim]`, so that lanes are dimensions:
//! one run of memory for a task of attention. Pages of 8 bits hold small integers in that order,
//! and beside them a 16-bit scale for each block of 32 dimensions of a position,
//! `[K, V][head_dim / 32][32]`:
//!
//! ```text
//! scale = f16(max |x| / 127)      q = round(x / scale), -127 to 127      x ≈ scale * q
//! ```
//!
//! A position's block depends on nothing but its own 32 values.

use half::f16;

use super::attention::{AttentionShape, Place};
use super::lanes::{self, LANES, Lanes, Vector};
use super::per_isa;
use crate::isa::Isa;
use crate::prefetch::Ahead;

/// Positions of a page.
pub const PAGE_LEN: usize = 32;
/// Dimensions of a head that share a scale in pages of 8 bits.
pub const KV_BLOCK_LEN: usize = 32;
/// The largest small integer.
const QUANT_MAX: f32 = 127.0;
/// 1.5 × 2^23: adding it rounds to an integer, which the low byte then holds.
const ROUND: f32 = 12_582_912.0;

/// One layer's keys and values: `[page][kv_head][K then V]`.
#[derive(Clone, Copy, Debug)]
pub enum KvPages<'a> {
    /// As 32-bit floats.
    F32(&'a [f32]),
    /// As 16-bit floats.
    F16(&'a [f16]),
    /// As 8-bit integers, each block of 32 with a 16-bit scale.
    Q8_0(&'a [i8], &'a [f16]),
}

/// One layer's keys and values, to be written.
#[derive(Debug)]
pub enum KvPagesMut<'a> {
    /// As 32-bit floats.
    F32(&'a mut [f32]),
    /// As 16-bit floats.
    F16(&'a mut [f16]),
    /// As 8-bit integers, each block of 32 with a 16-bit scale.
    Q8_0(&'a mut [i8], &'a mut [f16]),
}

/// Stores the keys and values of a batch.
///
/// Shapes: `k, v: [places, n_kv_heads, head_dim]`; `tables` holds page numbers. A value that
/// the pages cannot hold becomes the largest that they can.
///
/// # Panics
///
/// Panics if a shape does not fit or a page does not exist.
pub fn store_kv(
    isa: Isa,
    shape: &AttentionShape,
    pages: KvPagesMut<'_>,
    tables: &[u32],
    places: &[Place],
    k: &[f32],
    v: &[f32],
) {
    assert_eq!(k.len(), places.len() * shape.n_kv_heads * shape.head_dim, "keys of every place");
    assert_eq!(v.len(), k.len(), "values of every place");
    let store = &Store { shape, tables, places, k, v };
    match pages {
        KvPagesMut::F32(pages) => store.floats(pages, |value| value),
        KvPagesMut::F16(pages) => store.floats(pages, |value| {
            f16::from_f32(value.clamp(f16::MIN.to_f32_const(), f16::MAX.to_f32_const()))
        }),
        KvPagesMut::Q8_0(quants, scales) => {
            assert!(shape.head_dim.is_multiple_of(KV_BLOCK_LEN), "a head has whole blocks");
            per_isa!(isa, store_q8_0, store: &Store<'_>, quants: &mut [i8], scales: &mut [f16]);
        }
    }
}

struct Store<'a> {
    shape: &'a AttentionShape,
    tables: &'a [u32],
    places: &'a [Place],
    k: &'a [f32],
    v: &'a [f32],
}

impl Store<'_> {
    /// Calls `each(head of the page, position in the page, keys, values)` for each place's heads.
    #[inline(always)]
    fn heads(&self, mut each: impl FnMut(usize, usize, &[f32], &[f32])) {
        let (n_kv_heads, dim) = (self.shape.n_kv_heads, self.shape.head_dim);
        let heads = self.k.chunks_exact(dim).zip(self.v.chunks_exact(dim));
        for (i, (k, v)) in heads.enumerate() {
            let (place, head) = (self.places[i / n_kv_heads], i % n_kv_heads);
            let page = page_of(self.shape, self.tables, place.table, place.position / PAGE_LEN);
            each(page + head, place.position % PAGE_LEN, k, v);
        }
    }

    fn floats<T: Copy>(&self, pages: &mut [T], convert: impl Fn(f32) -> T) {
        let dim = self.shape.head_dim;
        self.heads(|head, slot, k, v| {
            let page = &mut pages[head * 2 * PAGE_LEN * dim..][..2 * PAGE_LEN * dim];
            let (keys, values) = page.split_at_mut(PAGE_LEN * dim);
            for (lanes, k) in keys.chunks_exact_mut(PAGE_LEN).zip(k) {
                lanes[slot] = convert(*k);
            }
            for (value, v) in values[slot * dim..][..dim].iter_mut().zip(v) {
                *value = convert(*v);
            }
        });
    }
}

#[inline(always)]
fn store_q8_0<V: Vector>(_: V, store: &Store<'_>, quants: &mut [i8], scales: &mut [f16]) {
    let dim = store.shape.head_dim;
    store.heads(|head, slot, k, v| {
        let quants = &mut quants[head * 2 * PAGE_LEN * dim..][..2 * PAGE_LEN * dim];
        let (keys, values) = quants.split_at_mut(PAGE_LEN * dim);
        let scales = &mut scales[head * 2 * dim..][..2 * dim];
        let (key_scales, value_scales) = scales.split_at_mut(dim);
        let (k, v) = (k.as_chunks::<KV_BLOCK_LEN>().0, v.as_chunks::<KV_BLOCK_LEN>().0);
        let blocks = keys.chunks_exact_mut(KV_BLOCK_LEN * PAGE_LEN);
        let blocks = blocks.zip(key_scales.chunks_exact_mut(PAGE_LEN));
        for ((keys, scales), k) in blocks.zip(k) {
            let (scale, quants) = quantize(k);
            scales[slot] = scale;
            for (lanes, quant) in keys.chunks_exact_mut(PAGE_LEN).zip(quants) {
                lanes[slot] = quant;
            }
        }
        let blocks = values[slot * dim..][..dim].chunks_exact_mut(KV_BLOCK_LEN);
        let blocks = blocks.zip(value_scales.chunks_exact_mut(PAGE_LEN));
        for ((values, scales), v) in blocks.zip(v) {
            let (scale, quants) = quantize(v);
            scales[slot] = scale;
            values.copy_from_slice(&quants);
        }
    });
}

/// Returns the scale and the small integers of a block.
#[inline(always)]
fn quantize(block: &[f32; KV_BLOCK_LEN]) -> (f16, [i8; KV_BLOCK_LEN]) {
    let largest: Lanes =
        core::array::from_fn(|i| lanes::larger(block[i].abs(), block[i + LANES].abs()));
    let wanted = lanes::max(largest) / QUANT_MAX;
    let held = if wanted > f16::MAX.to_f32_const() { f16::MAX.to_f32_const() } else { wanted };
    let scale = f16::from_f32_const(held);
    let float = scale.to_f32_const();
    let inverse = if float > 0.0 { 1.0 / float } else { 0.0 };
    #[expect(clippy::cast_possible_truncation, reason = "the low byte is the integer")]
    let quants = block.map(|value| {
        let value = value * inverse;
        let low = if value < -QUANT_MAX { -QUANT_MAX } else { value };
        let held = if low > QUANT_MAX { QUANT_MAX } else { low };
        (held + ROUND).to_bits() as i8
    });
    (scale, quants)
}

/// Returns the first KV head of a sequence's page, counted over all pages.
#[inline(always)]
pub(super) fn page_of(shape: &AttentionShape, tables: &[u32], table: usize, page: usize) -> usize {
    tables[table + page] as usize * shape.n_kv_heads
}

/// Pages as attention reads them.
pub(super) trait Source: Copy {
    /// A value as it is stored.
    type Item: Copy;
    /// Whether items have less than 32 bits.
    const IS_NARROW: bool = size_of::<Self::Item>() < size_of::<f32>();
    /// Whether a value is an item times the scale of its block.
    const IS_SCALED: bool;

    /// Returns one KV head of a page, counted over all pages.
    fn head(self, index: usize, head_dim: usize) -> Self;

    /// Returns the keys, then the values.
    fn items(&self) -> &[Self::Item];

    /// Returns the scales of a block of 32 dimensions, one for each position; of the values'
    /// blocks, which are counted after those of the keys, too.
    fn scales<V: Vector>(&self, vector: V, block: usize) -> [V::Reg; 2];

    /// Asks for the scales to be near before they are read.
    fn ask_for_scales(&self);

    /// Returns items as 32-bit floats, without their scale.
    fn widen<V: Vector>(vector: V, items: &[Self::Item; LANES]) -> V::Reg;
}

impl Source for &[f32] {
    type Item = f32;
    const IS_SCALED: bool = false;

    #[inline(always)]
    fn head(self, index: usize, head_dim: usize) -> Self {
        &self[index * 2 * PAGE_LEN * head_dim..][..2 * PAGE_LEN * head_dim]
    }

    #[inline(always)]
    fn items(&self) -> &[f32] {
        self
    }

    #[inline(always)]
    fn scales<V: Vector>(&self, vector: V, _: usize) -> [V::Reg; 2] {
        [vector.splat(1.0); 2]
    }

    #[inline(always)]
    fn ask_for_scales(&self) {}

    #[inline(always)]
    fn widen<V: Vector>(vector: V, items: &[f32; LANES]) -> V::Reg {
        vector.load(items)
    }
}

impl Source for &[f16] {
    type Item = f16;
    const IS_SCALED: bool = false;

    #[inline(always)]
    fn head(self, index: usize, head_dim: usize) -> Self {
        &self[index * 2 * PAGE_LEN * head_dim..][..2 * PAGE_LEN * head_dim]
    }

    #[inline(always)]
    fn items(&self) -> &[f16] {
        self
    }

    #[inline(always)]
    fn scales<V: Vector>(&self, vector: V, _: usize) -> [V::Reg; 2] {
        [vector.splat(1.0); 2]
    }

    #[inline(always)]
    fn ask_for_scales(&self) {}

    #[inline(always)]
    fn widen<V: Vector>(vector: V, items: &[f16; LANES]) -> V::Reg {
        vector.widen(items)
    }
}

/// Pages of 8-bit integers.
#[derive(Clone, Copy)]
pub(super) struct Quantized<'a> {
    pub(super) quants: &'a [i8],
    pub(super) scales: &'a [f16],
}

impl Source for Quantized<'_> {
    type Item = i8;
    const IS_SCALED: bool = true;

    #[inline(always)]
    fn head(self, index: usize, head_dim: usize) -> Self {
        Self {
            quants: &self.quants[index * 2 * PAGE_LEN * head_dim..][..2 * PAGE_LEN * head_dim],
            scales: &self.scales[index * 2 * head_dim..][..2 * head_dim],
        }
    }

    #[inline(always)]
    fn items(&self) -> &[i8] {
        self.quants
    }

    #[inline(always)]
    fn scales<V: Vector>(&self, vector: V, block: usize) -> [V::Reg; 2] {
        let scales = self.scales[block * PAGE_LEN..][..PAGE_LEN].as_chunks::<LANES>().0;
        [vector.widen(&scales[0]), vector.widen(&scales[1])]
    }

    #[inline(always)]
    fn ask_for_scales(&self) {
        Ahead::new(self.scales, 1).step();
    }

    #[inline(always)]
    fn widen<V: Vector>(vector: V, items: &[i8; LANES]) -> V::Reg {
        vector.widen_bytes(items)
    }
}
