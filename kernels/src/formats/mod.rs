//! The tensor formats of GGML: names, block sizes, and the exact values of their blocks.
//!
//! A row of a tensor is a whole number of blocks; a block of `block_len` weights takes
//! `block_size` bytes, little endian. Formats that hold no weights (plain integers, F64, the
//! activation formats) and formats that GGML withdrew are known by name but not supported.
//!
//! Source: ggml `ggml.h` (`enum ggml_type`) and gguf-py `constants.py`.

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
const UNSUPPORTED: [(u32, &str); 19] = [
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
    (138, "IQ4_K"),
    (139, "IQ5_K"),
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
        if cols % layout.block_len != 0 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_lead_back_to_their_types() {
        for ty in TensorType::all() {
            assert_eq!(TensorType::from_id(ty.id()), Some(ty));
            assert_eq!(format!("{ty:?}"), ty.name());
            assert_eq!(unsupported_name(ty.id()), None);
        }
        for id in 0..200 {
            assert!(TensorType::from_id(id).is_none() || unsupported_name(id).is_none(), "{id}");
        }
    }

    #[test]
    fn a_row_is_whole_blocks_or_nothing() {
        assert_eq!(TensorType::Q4_K.row_size(512), Some(288));
        assert_eq!(TensorType::Q4_K.row_size(511), None);
        assert_eq!(TensorType::F32.row_size(usize::MAX), None);
        assert_eq!(TensorType::Q8_0.row_size(0), Some(0));
    }
}
