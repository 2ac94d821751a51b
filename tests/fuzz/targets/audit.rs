//! What an auditor's tool reads: checkpoints, signed notes, verifier keys, the token table.
#![no_main]

use cloister::audit::note::{Checkpoint, Verifier};
use cloister::supervisor::tokens::TokenTable;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(checkpoint) = Checkpoint::parse(text) {
        assert_eq!(Checkpoint::parse(&checkpoint.to_text()).ok(), Some(checkpoint));
    }
    let (key, note) = text.split_once('\n').unwrap_or((text, ""));
    if let Ok(verifier) = Verifier::parse(key) {
        let _ = verifier.open(note.as_bytes());
    }
    let _ = TokenTable::parse(text);
});
