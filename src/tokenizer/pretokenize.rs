//! Cuts text into the pieces within which byte-level BPE merges, each by one pass over it.
//!
//! Each scanner is the regular expression that its constant's comment shows, written by hand:
//! `\p{L}` and `\p{N}` are Unicode's general categories, `\s` is Unicode's White_Space.

use unicode_general_category::{GeneralCategory, get_general_category};

/// Which rule cuts the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PreTokenizer {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// First each `\p{N}` alone, then as `Gpt2` between them.
    Smollm,
    /// `(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|`
    /// ` ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Qwen2,
    /// As `Qwen2`, but `\p{N}{1,3}` in place of `\p{N}`.
    LlamaBpe,
}

/// What a character is to a scanner.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

impl PreTokenizer {
    /// Returns the pre-tokenizer that a file names.
    pub(super) fn by_name(name: &str) -> Option<Self> {
        match name {
            "gpt-2" => Some(Self::Gpt2),
            "smollm" => Some(Self::Smollm),
            "qwen2" => Some(Self::Qwen2),
            "llama-bpe" => Some(Self::LlamaBpe),
            _ => None,
        }
    }

    /// Returns the pieces of `text`; joined, they are `text` again.
    pub(super) fn pieces(self, text: &str) -> impl Iterator<Item = &str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let len = match self {
                _ if rest.is_empty() => return None,
                Self::Gpt2 => gpt2_len(rest, false),
                Self::Smollm => gpt2_len(rest, true),
                Self::Qwen2 => llama3_len(rest, 1),
                Self::LlamaBpe => llama3_len(rest, 3),
            };
            let (piece, after) = rest.split_at(len);
            rest = after;
            Some(piece)
        })
    }
}

/// Returns the length of the first piece; with `lone_numbers` a number ends the text before it.
fn gpt2_len(text: &str, lone_numbers: bool) -> usize {
    if let Some(len) = contraction_len(text, false) {
        return len;
    }
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return 0 };
    let second = chars.next().map(class);
    let takes_second = match second {
        None | Some(Class::Space) => false,
        Some(Class::Number) => !lone_numbers,
        Some(Class::Letter | Class::Other) => true,
    };
    let (skipped, kind) = match second {
        Some(kind) if first == ' ' && takes_second => (1, kind),
        _ => (0, class(first)),
    };
    match kind {
        Class::Number if lone_numbers => first.len_utf8(),
        Class::Space => {
            let run = run_len(text, Class::Space);
            let next = text[run..].chars().next();
            let at_end = match next {
                None => true,
                Some(next) => lone_numbers && class(next) == Class::Number,
            };
            without_last_unless(at_end, &text[..run])
        }
        _ => skipped + run_len(&text[skipped..], kind),
    }
}

/// Returns the length of the first piece; at most `numbers_max` numbers stay together.
fn llama3_len(text: &str, numbers_max: usize) -> usize {
    if let Some(len) = contraction_len(text, true) {
        return len;
    }
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return 0 };
    let kind = class(first);
    let first_len = first.len_utf8();
    let second = chars.next().map(class);
    if kind == Class::Letter {
        return run_len(text, Class::Letter);
    }
    if kind == Class::Number {
        let numbers = text.chars().take_while(|&c| class(c) == Class::Number);
        return numbers.take(numbers_max).map(char::len_utf8).sum();
    }
    if second == Some(Class::Letter) && first != '\r' && first != '\n' {
        return first_len + run_len(&text[first_len..], Class::Letter);
    }
    if kind == Class::Other || (first == ' ' && second == Some(Class::Other)) {
        let skipped = if kind == Class::Other { 0 } else { first_len };
        let end = skipped + run_len(&text[skipped..], Class::Other);
        let is_break = |byte: &&u8| matches!(byte, b'\r' | b'\n');
        return end + text.as_bytes()[end..].iter().take_while(is_break).count();
    }
    let run = &text[..run_len(text, Class::Space)];
    match run.rfind(['\r', '\n']) {
        Some(last_break) => last_break + 1,
        None => without_last_unless(run.len() == text.len(), run),
    }
}

/// `\s+(?!\S)|\s+` over a whole run of white space: its last character goes with what follows,
/// unless nothing follows or it is alone.
fn without_last_unless(at_end: bool, run: &str) -> usize {
    match run.char_indices().next_back() {
        Some((last, _)) if !at_end && last > 0 => last,
        _ => run.len(),
    }
}

fn contraction_len(text: &str, any_case: bool) -> Option<usize> {
    let tail = text.strip_prefix('\'')?.as_bytes();
    let fold = |byte: u8| if any_case { byte.to_ascii_lowercase() } else { byte };
    match (tail.first().copied().map(fold), tail.get(1).copied().map(fold)) {
        (Some(b's' | b't' | b'm' | b'd'), _) => Some(2),
        (Some(b'r' | b'v'), Some(b'e')) | (Some(b'l'), Some(b'l')) => Some(3),
        _ => None,
    }
}

fn run_len(text: &str, kind: Class) -> usize {
    text.char_indices().find(|&(_, c)| class(c) != kind).map_or(text.len(), |(end, _)| end)
}

fn class(c: char) -> Class {
    use GeneralCategory as G;
    if c.is_ascii() {
        return match c {
            'a'..='z' | 'A'..='Z' => Class::Letter,
            '0'..='9' => Class::Number,
            '\t'..='\r' | ' ' => Class::Space,
            _ => Class::Other,
        };
    }
    match get_general_category(c) {
        G::UppercaseLetter
        | G::LowercaseLetter
        | G::TitlecaseLetter
        | G::ModifierLetter
        | G::OtherLetter => Class::Letter,
        G::DecimalNumber | G::LetterNumber | G::OtherNumber => Class::Number,
        _ if c.is_whitespace() => Class::Space,
        _ => Class::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by `make.py` beside them with the regular expressions themselves.
    const PIECES: &str = include_str!("../../tests/vectors/pretokenize/pieces.jsonl");
    const CLASSES: &str = include_str!("../../tests/vectors/pretokenize/classes.txt");

    #[test]
    fn scanners_cut_as_the_regular_expressions() {
        for line in PIECES.lines() {
            let case: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = case["text"].as_str().unwrap();
            for name in ["gpt-2", "smollm", "qwen2", "llama-bpe"] {
                let pieces = PreTokenizer::by_name(name).unwrap().pieces(text);
                let lens: Vec<usize> = pieces.map(str::len).collect();
                let expected: Vec<usize> = serde_json::from_value(case[name].clone()).unwrap();
                assert_eq!(lens, expected, "{name}: {text:?}");
            }
        }
    }

    #[test]
    fn classes_are_those_of_unicode() {
        let run = |line: &str| {
            let (code, kind) = line.split_once(' ').unwrap();
            (u32::from_str_radix(code, 16).unwrap(), kind.to_owned())
        };
        let runs: Vec<(u32, String)> = CLASSES.lines().map(run).collect();
        for (index, (start, kind)) in runs.iter().enumerate() {
            let end = runs.get(index + 1).map_or(0x11_0000, |next| next.0);
            for c in (*start..end).filter_map(char::from_u32) {
                let expected = match kind.as_str() {
                    "L" => Class::Letter,
                    "N" => Class::Number,
                    "S" => Class::Space,
                    "O" => Class::Other,
                    _ => continue,
                };
                assert!(class(c) == expected, "U+{:04X}", u32::from(c));
            }
        }
    }

    #[test]
    fn unknown_names_are_refused() {
        assert_eq!(PreTokenizer::by_name("default"), None);
    }
}
