//! Text through each kind of tokenizer: what is cut into tokens is put together again.
#![no_main]

use std::sync::OnceLock;

use cloister::gguf;
use cloister::tokenizer::{Markup, Tokenizer};
use libfuzzer_sys::fuzz_target;

/// A vocabulary of each pre-tokenizer that a text may be cut by.
fn tokenizers() -> &'static [Tokenizer] {
    static ALL: OnceLock<Vec<Tokenizer>> = OnceLock::new();
    ALL.get_or_init(|| {
        let files: [&[u8]; 2] = [
            include_bytes!("../../golden/tiny/llama.gguf"),
            include_bytes!("../../golden/tiny/qwen2.gguf"),
        ];
        let read = |file: &&[u8]| {
            let header = gguf::parse(file, file.len() as u64).unwrap();
            Tokenizer::from_metadata(&header.metadata).unwrap()
        };
        files.iter().map(read).collect()
    })
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for tokenizer in tokenizers() {
        let _ = tokenizer.encode(text, Markup::Special);
        let tokens = tokenizer.encode(text, Markup::Plain);
        let ids = tokens.iter().skip(usize::from(tokenizer.adds_bos()));
        let joined: Vec<u8> = ids.flat_map(|&id| tokenizer.token_bytes(id).to_vec()).collect();
        assert_eq!(joined, bytes);
    }
});
