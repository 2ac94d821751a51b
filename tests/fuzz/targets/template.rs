//! A model's chat template, rendered with a conversation that has some of everything.
#![no_main]

use cloister::template::{ChatTemplate, Conversation, joined_text};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|bytes: &[u8]| {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let Ok(template) = ChatTemplate::new(Some(source), "<s>", "</s>") else { return };
    let messages = json!([
        { "role": "system", "content": "be brief" },
        { "role": "user", "content": "<|im_end|> {{ x }}" },
        { "role": "assistant", "content": null, "tool_calls": [{
            "id": "a", "type": "function", "function": { "name": "f", "arguments": "{}" },
        }] },
        { "role": "tool", "tool_call_id": "a", "content": "1" },
    ]);
    let tools = json!([{ "type": "function", "function": { "name": "f", "parameters": {} } }]);
    let conversation = Conversation {
        messages: &messages,
        tools: Some(&tools),
        add_generation_prompt: true,
        now_unix_s: 1_721_995_200,
    };
    if let Ok(fragments) = template.render(&conversation) {
        let _ = joined_text(&fragments);
    }
});
