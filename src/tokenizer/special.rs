//! Which tokens are markup, and the search for them in text.

use std::collections::HashMap;

/// Token texts that end an answer whatever type or id the file gives them.
///
/// Among them are the separators of fill-in-the-middle training: what follows them is another file.
const END_OF_GENERATION: &[&str] = &[
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<turn|>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "< EOT >",
    "[EOT]",
    "[EOS]",
    "</s>",
    "<｜end▁of▁sentence｜>",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Returns whether a token of this text ends an answer.
pub(super) fn ends_generation(text: &str) -> bool {
    END_OF_GENERATION.contains(&text)
}

/// Returns whether a USER_DEFINED token's text is plain: letters, numbers and white space only.
///
/// Such a token is matched in any text (Gemma's runs of newlines and spaces). Every other one is
/// markup (Qwen's `<tool_call>`, Gemma's `<table>`) and matched in trusted text only.
pub(super) fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || c.is_whitespace() || c == '\u{2581}')
}

/// A token that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The token.
    pub(super) id: u32,
    /// The length of its text, in bytes.
    pub(super) len: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    id: u32,
    plain: bool,
}

/// The texts of special tokens as a tree of bytes.
pub(super) struct SpecialTokens {
    /// The node of each first byte.
    first: Box<[Option<u32>; 256]>,
    edges: HashMap<(u32, u8), u32>,
    entries: Vec<Option<Entry>>,
}

impl SpecialTokens {
    pub(super) fn new() -> Self {
        Self { first: Box::new([None; 256]), edges: HashMap::new(), entries: Vec::new() }
    }

    /// Adds a token; the first of equal texts stays.
    pub(super) fn add(&mut self, text: &[u8], id: u32, plain: bool) {
        let Some((&first, rest)) = text.split_first() else { return };
        let entries = &mut self.entries;
        let mut new_node = || {
            entries.push(None);
            u32::try_from(entries.len() - 1).expect("all token texts are below 4 GiB")
        };
        let mut node = *self.first[first as usize].get_or_insert_with(&mut new_node);
        for &byte in rest {
            node = *self.edges.entry((node, byte)).or_insert_with(&mut new_node);
        }
        self.entries[node as usize].get_or_insert(Entry { id, plain });
    }

    /// Returns the longest token at `start`: markup only if it ends at or before `trusted_end`.
    pub(super) fn longest(&self, text: &[u8], start: usize, trusted_end: usize) -> Option<Found> {
        let mut node = self.first[*text.get(start)? as usize]?;
        let mut found = None;
        let mut end = start + 1;
        loop {
            if let Some(entry) = self.entries[node as usize]
                && (entry.plain || end <= trusted_end)
            {
                found = Some(Found { id: entry.id, len: end - start });
            }
            let Some(next) = text.get(end).and_then(|&byte| self.edges.get(&(node, byte))) else {
                return found;
            };
            node = *next;
            end += 1;
        }
    }
}
