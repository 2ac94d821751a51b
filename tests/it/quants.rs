//! Every tensor format decodes to the golden values, bit for bit.

use std::fs;

use kernels::TensorType;
use serde_json::Value;

use crate::support::golden;

#[test]
fn blocks_decode_to_the_golden_values() {
    let folder = golden().join("quants");
    let index = fs::read_to_string(folder.join("index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    for (name, entry) in index.as_object().unwrap() {
        let number = |key: &str| usize::try_from(entry[key].as_u64().unwrap()).unwrap();
        let ty = TensorType::from_id(u32::try_from(number("type_id")).unwrap())
            .unwrap_or_else(|| panic!("{name} is not supported"));
        assert_eq!(ty.name(), name);
        assert_eq!(ty.block_len(), number("block_size"), "{name}");
        assert_eq!(ty.block_size(), number("type_size"), "{name}");

        let blocks = fs::read(folder.join(format!("{name}.bin"))).unwrap();
        let wanted = fs::read(folder.join(format!("{name}.f32"))).unwrap();
        let row_size = ty.row_size(number("row_len")).unwrap();
        assert_eq!(blocks.len(), number("rows") * row_size, "{name}");
        let mut values = vec![0.0; number("rows") * number("row_len")];
        kernels::dequantize(ty, &blocks, &mut values);
        let wanted = wanted.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        assert_eq!(wanted.len(), values.len(), "{name}");
        for (i, (value, wanted)) in values.iter().zip(wanted).enumerate() {
            let same = value.to_bits() == wanted.to_bits() || value.is_nan() && wanted.is_nan();
            assert!(same, "{name}: weight {i} is {value}, not {wanted}");
        }
    }
}
