//! Unit tests of the tensor formats.

use std::fs;
use std::path::Path;

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

#[test]
fn every_format_has_the_values_of_gguf_py() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/quants");
    for ty in TensorType::all().filter(|ty| *ty != TensorType::F32) {
        let blocks = fs::read(folder.join(format!("{}.bin", ty.name()))).unwrap();
        let values = fs::read(folder.join(format!("{}.f32", ty.name()))).unwrap();
        let mut out = vec![0.0; blocks.len() / ty.block_size() * ty.block_len()];
        dequantize(ty, &blocks, &mut out);
        let wanted: Vec<u32> =
            values.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        assert_eq!(out.len(), wanted.len(), "{}", ty.name());
        for (i, (value, wanted)) in out.iter().zip(&wanted).enumerate() {
            assert_eq!(value.to_bits(), *wanted, "{} weight {i}: {value}", ty.name());
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
