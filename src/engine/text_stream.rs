//! From tokens' bytes to text that may be sent.
//!
//! Only whole characters leave; bytes that can no longer become one are U+FFFD. What may be the
//! start of a stop string is held back until it is one, or is none. Text from a stop string on is
//! cut, the stop string included.

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextStreamEnd {
    /// More may come.
    Open,
    /// A stop string came: the one of this index.
    Stopped(usize),
}

/// The text of one answer, on its way out.
pub struct TextStream {
    stops: Vec<String>,
    /// Bytes that are not yet a whole character.
    bytes: Vec<u8>,
    /// Whole characters that may be the start of a stop string.
    held: String,
    end: TextStreamEnd,
}

impl TextStream {
    /// Starts a stream; empty stop strings are passed over.
    pub fn new(stops: &[String]) -> Self {
        let end = TextStreamEnd::Open;
        Self { stops: stops.to_vec(), bytes: Vec::new(), held: String::new(), end }
    }

    /// Takes the bytes of a token and adds what may be sent to `out`.
    ///
    /// After a stop string nothing more is added.
    pub fn push(&mut self, token: &[u8], out: &mut String) -> TextStreamEnd {
        if self.end == TextStreamEnd::Open {
            self.bytes.extend_from_slice(token);
            self.take_characters();
            self.release(out);
        }
        self.end
    }

    /// Ends the stream: adds what was held back.
    pub fn finish(&mut self, out: &mut String) -> TextStreamEnd {
        if self.end == TextStreamEnd::Open {
            self.held.push_str(&String::from_utf8_lossy(&self.bytes));
            self.bytes.clear();
            self.release(out);
            out.push_str(&self.held);
            self.held.clear();
        }
        self.end
    }

    /// Moves whole characters, and bytes that cannot become any, to `held`.
    fn take_characters(&mut self) {
        let mut taken = 0;
        loop {
            let rest = &self.bytes[taken..];
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.held.push_str(text);
                    taken += rest.len();
                    break;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    self.held.push_str(&String::from_utf8_lossy(&rest[..valid]));
                    taken += valid;
                    // Without a length the character is cut off and may yet come whole.
                    let Some(len) = error.error_len() else { break };
                    self.held.push(char::REPLACEMENT_CHARACTER);
                    taken += len;
                }
            }
        }
        self.bytes.drain(..taken);
    }

    /// Moves what cannot be part of a stop string to `out`, or cuts at the first stop string.
    fn release(&mut self, out: &mut String) {
        let stops = self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let first =
            stops.filter_map(|(index, stop)| Some((self.held.find(stop.as_str())?, index))).min();
        if let Some((at, index)) = first {
            out.push_str(&self.held[..at]);
            self.held.clear();
            self.bytes.clear();
            self.end = TextStreamEnd::Stopped(index);
            return;
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        out.extend(self.held.drain(..self.held.len() - keep));
    }
}

/// Returns the length of the longest end of `text` that `stop` starts with and is longer than.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    let is_start = |len: &usize| stop.as_bytes().starts_with(&text.as_bytes()[text.len() - len..]);
    (1..=longest).rev().find(is_start).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What leaves after each token and at the end.
    fn stream(stops: &[&str], tokens: &[&[u8]]) -> (Vec<String>, TextStreamEnd) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut stream = TextStream::new(&stops);
        let mut parts = Vec::new();
        for token in tokens {
            let mut out = String::new();
            stream.push(token, &mut out);
            parts.push(out);
        }
        let mut out = String::new();
        let end = stream.finish(&mut out);
        parts.push(out);
        (parts, end)
    }

    #[test]
    fn a_character_leaves_whole() {
        let (parts, _) = stream(&[], &[b"a\xF0\x9F", b"\x98", b"\x80b", "é".as_bytes()]);
        assert_eq!(parts, ["a", "", "😀b", "é", ""]);
    }

    #[test]
    fn bytes_that_are_no_character_are_replaced_each_once() {
        let (parts, _) = stream(&[], &[b"\xFFa", b"\xE2\x82", b"x", b"\xF0\x9F"]);
        assert_eq!(parts, ["\u{FFFD}a", "", "\u{FFFD}x", "", "\u{FFFD}"]);
    }

    #[test]
    fn a_stop_string_over_token_borders_is_held_back_and_cut() {
        let (parts, end) = stream(&["<END>"], &[b"ab<", b"EN", b"D> after", b"more"]);
        assert_eq!(parts, ["ab", "", "", "", ""]);
        assert_eq!(end, TextStreamEnd::Stopped(0));
    }

    #[test]
    fn what_was_no_stop_string_leaves_after_all() {
        let (parts, end) =
            stream(&["<END>", "", "aab"], &[b"x<E", b"Nope", b"a", b"a", b"a", b"c"]);
        assert_eq!(parts, ["x", "<ENope", "", "", "a", "aac", ""]);
        assert_eq!(end, TextStreamEnd::Open);
        let (parts, _) = stream(&["<END>"], &[b"x<EN"]);
        assert_eq!(parts, ["x", "<EN"]);
    }

    #[test]
    fn the_first_stop_string_in_the_text_counts() {
        let (parts, end) = stream(&["later", "soon"], &[b"now soon later"]);
        assert_eq!(parts[0], "now ");
        assert_eq!(end, TextStreamEnd::Stopped(1));
        let (parts, end) = stream(&["é!"], &["caf\u{e9}".as_bytes(), b"!"]);
        assert_eq!(parts, ["caf", "", ""]);
        assert_eq!(end, TextStreamEnd::Stopped(0));
    }
}
