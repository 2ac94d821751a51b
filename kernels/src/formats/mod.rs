//! The tensor formats of GGML: names, block sizes, and the exact values of their blocks.
//!
//! A row of a tensor is a whole number of blocks; a block of `block_len` weights takes
//! `block_size` bytes, little endian. Formats that hold no weights (plain integers, F64, the
//! activation formats) and formats that GGML withdrew are known by name but not supported.
//!
//! The code is our own; values are bit for bit those of gguf-py for every format: products and sums
//! are rounded one by one, never fused.
//!
//! Source: ggml `ggml.h` (`enum ggml_type`), gguf-py `constants.py` and `quants.py`.

mod four_bit;
mod grids;
mod k_quants;
mod lattice;
mod simple;
mod ternary;
#[cfg(test)]
mod tests;

/// A tensor format that the kernels can read.
///
/// The discriminants are GGML's type ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(non_camel_case_types, reason = "the names that GGML and every model file use")]
#[repr(u32)]
pub enum TensorType {
    /// 32-bit floats.
    F32 = 0,
    /// 16-bit IEEE floats.
    F16 = 1,
    /// 4-bit, 32 a block, scale.
    Q4_0 = 2,
    /// 4-bit, 32 a block, scale and minimum.
    Q4_1 = 3,
    /// 5-bit, 32 a block, scale.
    Q5_0 = 6,
    /// 5-bit, 32 a block, scale and minimum.
    Q5_1 = 7,
    /// 8-bit, 32 a block, scale.
    Q8_0 = 8,
    /// 2-bit, 256 a block, 16 sub-blocks with scale and minimum.
    Q2_K = 10,
    /// 3-bit, 256 a block, 16 sub-blocks with scale.
    Q3_K = 11,
    /// 4-bit, 256 a block, 8 sub-blocks with scale and minimum.
    Q4_K = 12,
    /// 5-bit, 256 a block, 8 sub-blocks with scale and minimum.
    Q5_K = 13,
    /// 6-bit, 256 a block, 16 sub-blocks with scale.
    Q6_K = 14,
    /// 2.06 bits a weight, lattice of 256 points.
    IQ2_XXS = 16,
    /// 2.31 bits a weight, lattice of 512 points.
    IQ2_XS = 17,
    /// 3.06 bits a weight, lattice of 256 points.
    IQ3_XXS = 18,
    /// 1.56 bits a weight, lattice of 2048 points.
    IQ1_S = 19,
    /// 4-bit on a non-linear scale, 32 a block.
    IQ4_NL = 20,
    /// 3.44 bits a weight, lattice of 512 points.
    IQ3_S = 21,
    /// 2.56 bits a weight, lattice of 1024 points.
    IQ2_S = 22,
    /// 4-bit on a non-linear scale, 256 a block.
    IQ4_XS = 23,
    /// 1.75 bits a weight, lattice of 2048 points.
    IQ1_M = 29,
    /// The upper half of 32-bit floats.
    BF16 = 30,
    /// Ternary, five weights a byte.
    TQ1_0 = 34,
    /// Ternary, four weights a byte.
    TQ2_0 = 35,
    /// OCP microscaling: 4-bit floats (E2M1), 32 a block, power-of-two scale.
    MXFP4 = 39,
    /// NVIDIA's 4-bit floats (E2M1), 16 a sub-block, 8-bit float scale.
    NVFP4 = 40,
}

/// The layout of one format.
struct Layout {
    ty: TensorType,
    name: &'static str,
    block_len: usize,
    block_size: usize,
}

const fn layout(ty: TensorType, name: &'static str, block_len: usize, block_size: usize) -> Layout {
    Layout { ty, name, block_len, block_size }
}

/// Every supported format, ordered by id.
const LAYOUTS: [Layout; 26] = [
    layout(TensorType::F32, "F32", 1, 4),
    layout(TensorType::F16, "F16", 1, 2),
    layout(TensorType::Q4_0, "Q4_0", 32, 18),
    layout(TensorType::Q4_1, "Q4_1", 32, 20),
    layout(TensorType::Q5_0, "Q5_0", 32, 22),
    layout(TensorType::Q5_1, "Q5_1", 32, 24),
    layout(TensorType::Q8_0, "Q8_0", 32, 34),
    layout(TensorType::Q2_K, "Q2_K", 256, 84),
    layout(TensorType::Q3_K, "Q3_K", 256, 110),
    layout(TensorType::Q4_K, "Q4_K", 256, 144),
    layout(TensorType::Q5_K, "Q5_K", 256, 176),
    layout(TensorType::Q6_K, "Q6_K", 256, 210),
    layout(TensorType::IQ2_XXS, "IQ2_XXS", 256, 66),
    layout(TensorType::IQ2_XS, "IQ2_XS", 256, 74),
    layout(TensorType::IQ3_XXS, "IQ3_XXS", 256, 98),
    layout(TensorType::IQ1_S, "IQ1_S", 256, 50),
    layout(TensorType::IQ4_NL, "IQ4_NL", 32, 18),
    layout(TensorType::IQ3_S, "IQ3_S", 256, 110),
    layout(TensorType::IQ2_S, "IQ2_S", 256, 82),
    layout(TensorType::IQ4_XS, "IQ4_XS", 256, 136),
    layout(TensorType::IQ1_M, "IQ1_M", 256, 56),
    layout(TensorType::BF16, "BF16", 1, 2),
    layout(TensorType::TQ1_0, "TQ1_0", 256, 54),
    layout(TensorType::TQ2_0, "TQ2_0", 256, 66),
    layout(TensorType::MXFP4, "MXFP4", 32, 17),
    layout(TensorType::NVFP4, "NVFP4", 64, 36),
];

/// Formats that GGML knows or once knew and that no weight matrix here may have.
const UNSUPPORTED: [(u32, &str); 17] = [
    (4, "Q4_2 (withdrawn)"),
    (5, "Q4_3 (withdrawn)"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (31, "Q4_0_4_4 (withdrawn)"),
    (32, "Q4_0_4_8 (withdrawn)"),
    (33, "Q4_0_8_8 (withdrawn)"),
    (36, "IQ4_NL_4_4 (withdrawn)"),
    (37, "IQ4_NL_4_8 (withdrawn)"),
    (38, "IQ4_NL_8_8 (withdrawn)"),
    (41, "Q1_0"),
    (42, "Q2_0"),
];

impl TensorType {
    /// Returns every supported format, ordered by id.
    pub fn all() -> impl Iterator<Item = Self> {
        LAYOUTS.iter().map(|layout| layout.ty)
    }

    /// Returns the format of a GGML type id, or nothing if the kernels cannot read it.
    pub fn from_id(id: u32) -> Option<Self> {
        LAYOUTS.iter().find(|layout| layout.ty.id() == id).map(|layout| layout.ty)
    }

    /// Returns the GGML type id.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Returns the name that GGML gives the format.
    pub fn name(self) -> &'static str {
        self.layout().name
    }

    /// Returns how many weights one block holds.
    pub fn block_len(self) -> usize {
        self.layout().block_len
    }

    /// Returns how many bytes one block takes.
    pub fn block_size(self) -> usize {
        self.layout().block_size
    }

    /// Returns how many bytes a row of `cols` weights takes.
    ///
    /// Nothing if the row is not a whole number of blocks or its size overflows.
    pub fn row_size(self, cols: usize) -> Option<usize> {
        let layout = self.layout();
        if !cols.is_multiple_of(layout.block_len) {
            return None;
        }
        (cols / layout.block_len).checked_mul(layout.block_size)
    }

    fn layout(self) -> &'static Layout {
        let position = LAYOUTS.iter().position(|layout| layout.ty == self);
        &LAYOUTS[position.expect("the table has every variant")]
    }
}

/// Names a GGML type id that exists but that [`TensorType::from_id`] refuses.
pub fn unsupported_name(id: u32) -> Option<&'static str> {
    UNSUPPORTED.iter().find(|(known, _)| *known == id).map(|(_, name)| *name)
}

/// Writes the values of whole blocks.
///
/// Shapes: `blocks: [n * ty.block_size()]`, `out: [n * ty.block_len()]`.
///
/// # Panics
///
/// Panics if the lengths are otherwise.
pub fn dequantize(ty: TensorType, blocks: &[u8], out: &mut [f32]) {
    match ty {
        TensorType::F32 => each(blocks, out, simple::f32_),
        TensorType::F16 => each(blocks, out, simple::f16_),
        TensorType::BF16 => each(blocks, out, simple::bf16_),
        TensorType::Q4_0 => each(blocks, out, simple::q4_0),
        TensorType::Q4_1 => each(blocks, out, simple::q4_1),
        TensorType::Q5_0 => each(blocks, out, simple::q5_0),
        TensorType::Q5_1 => each(blocks, out, simple::q5_1),
        TensorType::Q8_0 => each(blocks, out, simple::q8_0),
        TensorType::Q2_K => each(blocks, out, k_quants::q2_k),
        TensorType::Q3_K => each(blocks, out, k_quants::q3_k),
        TensorType::Q4_K => each(blocks, out, k_quants::q4_k),
        TensorType::Q5_K => each(blocks, out, k_quants::q5_k),
        TensorType::Q6_K => each(blocks, out, k_quants::q6_k),
        TensorType::IQ2_XXS => each(blocks, out, lattice::iq2_xxs),
        TensorType::IQ2_XS => each(blocks, out, lattice::iq2_xs),
        TensorType::IQ2_S => each(blocks, out, lattice::iq2_s),
        TensorType::IQ3_XXS => each(blocks, out, lattice::iq3_xxs),
        TensorType::IQ3_S => each(blocks, out, lattice::iq3_s),
        TensorType::IQ1_S => each(blocks, out, lattice::iq1_s),
        TensorType::IQ1_M => each(blocks, out, lattice::iq1_m),
        TensorType::IQ4_NL => each(blocks, out, four_bit::iq4_nl),
        TensorType::IQ4_XS => each(blocks, out, four_bit::iq4_xs),
        TensorType::MXFP4 => each(blocks, out, four_bit::mxfp4),
        TensorType::NVFP4 => each(blocks, out, four_bit::nvfp4),
        TensorType::TQ1_0 => each(blocks, out, ternary::tq1_0),
        TensorType::TQ2_0 => each(blocks, out, ternary::tq2_0),
    }
}

/// Runs `decode` over each block of `SIZE` bytes and `LEN` values.
fn each<const SIZE: usize, const LEN: usize>(
    blocks: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; SIZE], &mut [f32; LEN]),
) {
    let (blocks, rest) = blocks.as_chunks::<SIZE>();
    assert!(rest.is_empty(), "the bytes are whole blocks");
    let (out, rest) = out.as_chunks_mut::<LEN>();
    assert!(rest.is_empty() && out.len() == blocks.len(), "the output has a place for each value");
    for (block, out) in blocks.iter().zip(out) {
        decode(block, out);
    }
}

/// Returns the 16-bit float at byte `at`.
fn f16_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}
