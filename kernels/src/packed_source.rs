//! The blocks of the integer formats as files have them, taken apart for packing.
//!
//! Source: ggml `ggml-common.h` (block structs) and `ggml-quants.c` (order of the weights).

use crate::formats::TensorType;

/// One block: bytes in column order, scales as stored.
pub(crate) struct SourceBlock {
    /// Unsigned weights, `block_len` of them.
    pub(crate) bytes: [u8; 256],
    /// The (outer) scale: f16.
    pub(crate) d: [u8; 2],
    /// The minimum, or the scale of the minima: f16.
    pub(crate) min: [u8; 2],
    /// Scales of the sub-blocks (K formats).
    pub(crate) scales: [u8; 16],
    /// Minima of the sub-blocks (K formats).
    pub(crate) mins: [u8; 8],
}

impl SourceBlock {
    /// Reads a block of an integer format.
    ///
    /// # Panics
    ///
    /// Panics if `source` is not one block, or the format has no integer form.
    pub(crate) fn read(ty: TensorType, source: &[u8]) -> Self {
        assert_eq!(source.len(), ty.block_size(), "source is one block");
        let mut block =
            Self { bytes: [0; 256], d: [0; 2], min: [0; 2], scales: [0; 16], mins: [0; 8] };
        match ty {
            TensorType::Q8_0 => block.read_q8_0(source),
            TensorType::Q4_0 => block.read_nibbles(source, 0, 0),
            TensorType::Q4_1 => block.read_nibbles(source, 2, 0),
            TensorType::Q5_0 => block.read_nibbles(source, 0, 4),
            TensorType::Q5_1 => block.read_nibbles(source, 2, 4),
            TensorType::Q4_K => block.read_super_min(source, 0),
            TensorType::Q5_K => block.read_super_min(source, 32),
            TensorType::Q6_K => block.read_q6_k(source),
            _ => unreachable!("only integer forms are packed from source blocks"),
        }
        block
    }

    /// `d: f16, quants: [i8; 32]`; a byte is the quant + 128.
    fn read_q8_0(&mut self, source: &[u8]) {
        self.d.copy_from_slice(&source[..2]);
        for (byte, quant) in self.bytes.iter_mut().zip(&source[2..]) {
            *byte = quant ^ 0x80;
        }
    }

    /// `d: f16, min: f16 (or none), high bits: u32 (or none), nibbles: [u8; 16]`; byte `j` of the
    /// nibbles holds the columns `j` and `j + 16`.
    fn read_nibbles(&mut self, source: &[u8], min_size: usize, high_size: usize) {
        let (d, rest) = source.split_at(2);
        let (min, rest) = rest.split_at(min_size);
        let (high, nibbles) = rest.split_at(high_size);
        self.d.copy_from_slice(d);
        self.min[..min_size].copy_from_slice(min);
        for (j, pair) in nibbles.iter().enumerate() {
            self.bytes[j] = pair & 15;
            self.bytes[j + 16] = pair >> 4;
        }
        for (j, bits) in high.iter().enumerate() {
            for bit in 0..8 {
                self.bytes[j * 8 + bit] |= (bits >> bit & 1) << 4;
            }
        }
    }

    /// `d: f16, dmin: f16, scales: [u8; 12], high bits: [u8; 32] (or none), nibbles: [u8; 128]`;
    /// 32 bytes of nibbles hold two sub-blocks; sub-block `s` has bit `s` of the high bits.
    fn read_super_min(&mut self, source: &[u8], high_size: usize) {
        self.d.copy_from_slice(&source[..2]);
        self.min.copy_from_slice(&source[2..4]);
        let packed = &source[4..16];
        for j in 0..4 {
            self.scales[j] = packed[j] & 63;
            self.mins[j] = packed[j + 4] & 63;
            self.scales[j + 4] = packed[j + 8] & 15 | packed[j] >> 6 << 4;
            self.mins[j + 4] = packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4;
        }
        let (high, nibbles) = source[16..].split_at(high_size);
        for (pair, nibbles) in nibbles.chunks_exact(32).enumerate() {
            for (j, nibble) in nibbles.iter().enumerate() {
                self.bytes[pair * 64 + j] = nibble & 15;
                self.bytes[pair * 64 + 32 + j] = nibble >> 4;
            }
        }
        for (j, bits) in high.iter().enumerate() {
            for sub in 0..8 {
                self.bytes[sub * 32 + j] |= (bits >> sub & 1) << 4;
            }
        }
    }

    /// `low: [u8; 128], high: [u8; 64], scales: [i8; 16], d: f16`; 64 bytes of low and 32 of high
    /// bits hold 128 columns.
    fn read_q6_k(&mut self, source: &[u8]) {
        let (low, rest) = source.split_at(128);
        let (high, rest) = rest.split_at(64);
        self.scales.copy_from_slice(&rest[..16]);
        self.d.copy_from_slice(&rest[16..]);
        let parts = self.bytes.chunks_exact_mut(128).zip(low.chunks_exact(64));
        for ((bytes, low), high) in parts.zip(high.chunks_exact(32)) {
            let (first, second) = low.split_at(32);
            let quarters = [(first, 0), (second, 0), (first, 4), (second, 4)];
            for (quarter, bytes) in bytes.chunks_exact_mut(32).enumerate() {
                let (low, shift) = quarters[quarter];
                for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
                    *byte = low >> shift & 15 | (high >> (quarter * 2) & 3) << 4;
                }
            }
        }
    }
}
