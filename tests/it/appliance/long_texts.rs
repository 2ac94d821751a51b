//! Texts of far more tokens than any context: refused, again and again, by processes that live on. What they
//! leave on a heap is more than the C library keeps by itself.

use super::*;

/// Texts of which a tokenizer makes much: single letters, words, no break at all, markup, many bytes each.
const PIECES: [&str; 5] = ["a ", "word ", "ab", "<|im_end|>", "\u{1F600}"];
/// Bytes of a text: under the bound on a body.
const TEXT_LEN_BYTES: usize = 3 << 20;

#[test]
fn a_text_of_many_tokens_is_refused_and_ends_no_process() {
    for user in users() {
        let appliance = Appliance::start(user);
        let pids =
            || ["cloister-worker", "cloister-gateway"].map(|name| appliance.only_child(name));
        let before = pids();
        for (piece, len) in
            PIECES.iter().flat_map(|piece| [(piece, 256 << 10), (piece, TEXT_LEN_BYTES)])
        {
            let text = piece.repeat(len / piece.len());
            let (status, answer) = appliance.chat(&ask(&text, 1));
            let code = &answer["error"]["code"];
            assert_eq!(
                (status, code),
                (400, &json!("context_length_exceeded")),
                "{piece} {len}: {answer}"
            );
        }
        let bodies = [
            json!({ "model": "smol", "messages": vec![json!({ "role": "user", "content": "a" }); 4000] }),
            json!({ "model": "smol", "messages": [{ "role": "user", "content": vec!["a"; 9000] }] }),
        ];
        for body in bodies {
            let (status, answer) = appliance.chat(&body);
            assert_eq!(status, 400, "{answer}");
        }
        let (status, answer) = appliance.chat(&ask("a", 1));
        assert_eq!((status, pids()), (200, before), "{answer}\n{}", appliance.told());
        assert!(appliance.records("sandbox_violation").is_empty());
    }
}
