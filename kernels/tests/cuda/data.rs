//! Test data: numbers, blocks of every format, matrices with their plain products.

use half::f16;
use kernels::{
    Activations, Isa, Packed, Pool, Precision, Product, TensorType, Write, dequantize, gemm, pack,
    packed_size,
};

/// A small generator of test data (PCG's multiplier, upper bits).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 32) as u32
    }

    /// In `-1.0..1.0`.
    pub(crate) fn unit(&mut self) -> f32 {
        self.bits() as f32 / 2_147_483_648.0 - 1.0
    }

    pub(crate) fn units(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.unit()).collect()
    }

    /// Activations as models have them: most small, a few outliers, a block of zeros.
    pub(crate) fn activations(&mut self, len: usize) -> Vec<f32> {
        let outlier = |random: &mut Self| if random.bits().is_multiple_of(64) { 30.0 } else { 1.0 };
        let mut x: Vec<f32> = (0..len).map(|_| self.unit() * outlier(self)).collect();
        if len >= 96 {
            x[32..64].fill(0.0);
        }
        x
    }

    /// Blocks of any content whose weights are numbers of sane size.
    fn blocks(&mut self, ty: TensorType, count: usize) -> Vec<u8> {
        let mut weights = vec![0.0; ty.block_len()];
        let mut all = Vec::new();
        while all.len() < count * ty.block_size() {
            let mut block: Vec<u8> =
                (0..ty.block_size()).map(|_| self.bits().to_le_bytes()[0]).collect();
            for at in scale_places(ty) {
                block[*at..at + 2]
                    .copy_from_slice(&f16::from_f32(self.unit() * 0.02).to_le_bytes());
            }
            dequantize(ty, &block, &mut weights);
            if weights.iter().all(|weight| weight.abs() < 100.0) {
                all.extend_from_slice(&block);
            }
        }
        all
    }
}

/// Where the 16-bit scales of a block are that random bits would make too large.
fn scale_places(ty: TensorType) -> &'static [usize] {
    match ty {
        TensorType::Q8_0 | TensorType::Q4_0 | TensorType::Q5_0 => &[0],
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K => &[0, 2],
        TensorType::Q6_K => &[208],
        TensorType::Q2_K => &[80, 82],
        TensorType::Q3_K => &[108],
        _ => &[],
    }
}

/// Returns whether products read activations as bytes.
pub(crate) fn is_int(ty: TensorType) -> bool {
    use TensorType::{Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
    matches!(ty, Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q4_K | Q5_K | Q6_K)
}

/// A matrix as the loader packs it.
pub(crate) struct Matrix {
    pub(crate) ty: TensorType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) packed: Vec<u8>,
}

/// Columns that are summed up by themselves on the card.
const SEGMENT_LEN: usize = 128;

impl Matrix {
    pub(crate) fn random(random: &mut Random, ty: TensorType, rows: usize, cols: usize) -> Self {
        let source = random.blocks(ty, rows * cols / ty.block_len());
        let mut packed = vec![0xAA; packed_size(ty, rows, cols).unwrap()];
        pack(ty, rows, cols, &source, &mut packed);
        Self { ty, rows, cols, packed }
    }

    pub(crate) fn view(&self) -> Packed<'_> {
        Packed::new(self.ty, self.rows, self.cols, &self.packed).unwrap()
    }

    /// The plain product on the CPU.
    pub(crate) fn times(&self, precision: Precision, x: &[f32]) -> Vec<f32> {
        let tokens = x.len() / self.cols;
        let mut out = vec![f32::NAN; tokens * self.rows];
        let mut scratch = Activations::new(self.cols, tokens);
        let product = Product { weights: self.view(), out: &mut out, write: Write::Over };
        gemm(&Pool::new(1), Isa::Reference, precision, &mut scratch, x, tokens, &mut [product]);
        out
    }

    /// The product in the card's order: that of the CPU for each segment of columns, the segments in
    /// order. Columns that are zero change no sum.
    pub(crate) fn in_segments(&self, x: &[f32]) -> Vec<f32> {
        let precision = if is_int(self.ty) { Precision::Int8 } else { Precision::F32 };
        let mut total = vec![0.0; x.len() / self.cols * self.rows];
        for start in (0..self.cols).step_by(SEGMENT_LEN) {
            let segment = start..start + SEGMENT_LEN;
            let is_in = |i: usize| segment.contains(&(i % self.cols));
            let part: Vec<f32> =
                x.iter().enumerate().map(|(i, x)| if is_in(i) { *x } else { 0.0 }).collect();
            let sums = self.times(precision, &part);
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
        total
    }
}

/// A block of 32 activations as bytes, as `kernels/src/quantize.rs` defines it: scale, quants.
fn quantize_block(x: &[f32]) -> (f32, [i8; 32]) {
    let magnitude = x.iter().fold(0, |max, x| max.max(x.to_bits() & 0x7FFF_FFFF));
    let magnitude = f32::from_bits(magnitude);
    let scale = f32::from_bits((magnitude / 127.0).to_bits().wrapping_add(0xFF) & !0xFF);
    let is_told = (1e-30..1e30).contains(&magnitude);
    let inverse = if is_told { 1.0 / scale } else { 0.0 };
    let untold = if magnitude < 1e-30 { 0.0 } else { f32::NAN };
    let quant = |x: f32| (x * inverse + 12_582_912.0).to_bits().to_le_bytes()[0].cast_signed();
    (if is_told { scale } else { untold }, std::array::from_fn(|i| quant(x[i])))
}

/// Activations as the card has them: quants, and for each block the bits of its scale and its sums.
pub(crate) fn quantize(x: &[f32]) -> (Vec<i8>, Vec<u32>) {
    let (mut all, mut scales) = (Vec::new(), Vec::new());
    for block in x.chunks_exact(32) {
        let (scale, quants) = quantize_block(block);
        let sum = |half: &[i8]| half.iter().map(|quant| i32::from(*quant)).sum::<i32>();
        let sums = (sum(&quants[..16]) & 0xFFFF) | sum(&quants[16..]) << 16;
        all.extend_from_slice(&quants);
        scales.extend([scale.to_bits(), sums.cast_unsigned()]);
    }
    (all, scales)
}

/// Says where two results differ; a NaN equals a NaN.
pub(crate) fn assert_same(found: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        let same = found == wanted || found.is_nan() && wanted.is_nan();
        assert!(same, "{what}: value {i} is {found}, not {wanted}");
    }
}

/// Says where two results are further apart than a share of the largest.
pub(crate) fn assert_near(found: &[f32], wanted: &[f32], share: f32, what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let largest = wanted.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        let is_near = (found - wanted).abs() <= share * largest;
        assert!(is_near, "{what}: value {i} is {found}, not {wanted}");
    }
}
