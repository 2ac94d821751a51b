//! Unit tests of the tensor formats.

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

/// A format, its golden blocks, and their values as little-endian `f32`.
type Golden = (TensorType, &'static [u8], &'static [u8]);

/// The golden blocks and values of each format named.
macro_rules! golden {
    ($($ty:ident)*) => {
        [$((
            TensorType::$ty,
            include_bytes!(concat!("../../../tests/golden/quants/", stringify!($ty), ".bin")),
            include_bytes!(concat!("../../../tests/golden/quants/", stringify!($ty), ".f32")),
        )),*]
    };
}

const GOLDEN: [Golden; 25] = golden! {
    F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S
    IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4 NVFP4
};

#[test]
fn every_format_has_the_values_of_gguf_py() {
    for (ty, blocks, values) in GOLDEN {
        let mut out = vec![0.0; blocks.len() / ty.block_size() * ty.block_len()];
        dequantize(ty, blocks, &mut out);
        let wanted = values.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
        assert_eq!(out.len(), wanted.len(), "{}", ty.name());
        for (i, (value, wanted)) in out.iter().zip(wanted).enumerate() {
            assert_eq!(value.to_bits(), wanted, "{} weight {i}: {value}", ty.name());
        }
    }
}

#[test]
fn f32_is_itself() {
    let mut out = [0.0; 2];
    dequantize(TensorType::F32, &[0, 0, 128, 63, 0, 0, 0, 192], &mut out);
    assert_eq!(out, [1.0, -2.0]);
}

#[test]
#[should_panic(expected = "the bytes are whole blocks")]
fn refuses_a_partial_block() {
    dequantize(TensorType::Q8_0, &[0; 33], &mut [0.0; 32]);
}

#[test]
#[should_panic(expected = "the output has a place for each value")]
fn refuses_a_short_output() {
    dequantize(TensorType::Q8_0, &[0; 68], &mut [0.0; 32]);
}
