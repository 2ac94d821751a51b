//! Unit tests of the GGUF reader.

use super::*;

#[test]
fn reads_the_tiny_models() {
    for name in ["llama", "llama3_ropefreqs", "llama_tied_mha", "qwen2", "gemma3"] {
        let path = format!("{}/tests/golden/tiny/{name}.gguf", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(path).unwrap();
        let header = parse(&bytes, bytes.len() as u64).unwrap();
        assert_eq!(header.version, 3);
        assert!(header.metadata.string("general.architecture").unwrap().is_some());
        let tokens = header.metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap();
        assert!(tokens.iter().any(|token| !token.is_empty()));
        assert!(header.tensor("token_embd.weight").is_some());
        let start = usize::try_from(header.data_offset).unwrap();
        let again = parse(&bytes[..start], bytes.len() as u64).unwrap();
        assert_eq!(again.tensors, header.tensors);
    }
}
