//! A model file's header, and all that is made of it: tokenizer, template, layout of the packed weights.
#![no_main]

use cloister::engine::ImageLayout;
use cloister::gguf;
use cloister::template::ChatTemplate;
use cloister::tokenizer::{Markup, Tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // As if the weights came behind it.
    for file_len in [bytes.len() as u64, 1 << 40] {
        let Ok(header) = gguf::parse(bytes, file_len) else { continue };
        let _ = ImageLayout::new(&header);
        if let Ok(tokenizer) = Tokenizer::from_metadata(&header.metadata) {
            let _ = tokenizer.encode("a text\n", Markup::Special);
            let _ = ChatTemplate::from_metadata(&header.metadata, &tokenizer);
        }
    }
});
