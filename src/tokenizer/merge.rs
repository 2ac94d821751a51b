//! Joins neighbouring symbols, best pair first, leftmost among equals: the heart of BPE and SPM.
//!
//! The text is worked through in windows, so that time per byte does not grow with the text. The
//! result is still exact: a sequence of tokens is what merging the whole text gives if, and only
//! if, merging each two neighbours alone gives these two again. Neighbours inside a window are so
//! by construction, and a window starts with the very token that the one before it found there.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The id of a symbol that is no token: one unit of text that the vocabulary lacks.
pub(super) const NO_TOKEN: u32 = u32::MAX;
/// The index that ends a list of symbols.
const NO_SYMBOL: u32 = u32::MAX;
/// First length of a window, in bytes; doubled when two windows do not meet.
const WINDOW_LEN_BYTES: usize = 4096;
/// The end of a window that may differ from the whole text's tokens, as its fraction.
const UNSURE_FRACTION: usize = 8;

/// What can be joined, and how early.
pub(super) trait Rules {
    /// Returns the length of the first unit of `text`, which is not empty, and its token.
    fn unit(&self, text: &[u8]) -> (usize, u32);

    /// Returns the priority (smaller is earlier) and the token of the union of two neighbours,
    /// given their tokens and their joint text.
    fn join(&self, left: u32, right: u32, both: &[u8]) -> Option<(u32, u32)>;
}

/// A stretch of text in a list of its neighbours; a length of zero marks one that was joined.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    len: u32,
    id: u32,
    prev: u32,
    next: u32,
}

/// A pair that can be joined; stale once either length has changed.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    priority: u32,
    left: u32,
    left_len: u32,
    right_len: u32,
    id: u32,
}

/// A token (or a unit without one) and its length in bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Piece {
    id: u32,
    len: u32,
}

/// Merges text; keeps its buffers from one text to the next.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Reverse<Candidate>>,
    /// Units and pairs looked at so far.
    pub(super) steps: u64,
}

impl Merger {
    /// Merges `text` and gives each token, or `NO_TOKEN`, with its text to `emit`.
    pub(super) fn merge<R: Rules>(
        &mut self,
        rules: &R,
        text: &[u8],
        emit: &mut impl FnMut(u32, &[u8]),
    ) {
        self.merge_in_windows(rules, text, WINDOW_LEN_BYTES, emit);
    }

    fn merge_in_windows<R: Rules>(
        &mut self,
        rules: &R,
        text: &[u8],
        mut window_len: usize,
        emit: &mut impl FnMut(u32, &[u8]),
    ) {
        let mut start = 0;
        let mut pieces = Vec::new();
        let mut following = Vec::new();
        let mut covered = self.merge_window(rules, text, window_len, &mut pieces);
        while start + covered < text.len() {
            let meeting = meeting_place(&pieces, covered);
            if let Some((index, offset)) = meeting {
                let rest = &text[start + offset..];
                let covered_next = self.merge_window(rules, rest, window_len, &mut following);
                if following.first() == Some(&pieces[index]) {
                    give(&pieces[..index], &text[start..], emit);
                    std::mem::swap(&mut pieces, &mut following);
                    start += offset;
                    covered = covered_next;
                    continue;
                }
            }
            window_len *= 2;
            covered = self.merge_window(rules, &text[start..], window_len, &mut pieces);
        }
        give(&pieces, &text[start..], emit);
    }

    /// Merges about the first `window_len` bytes of `text`; returns how many it took.
    fn merge_window<R: Rules>(
        &mut self,
        rules: &R,
        text: &[u8],
        window_len: usize,
        pieces: &mut Vec<Piece>,
    ) -> usize {
        let text = self.load_units(rules, text, window_len);
        for left in 1..self.symbols.len() {
            self.consider(rules, text, left - 1);
        }
        while let Some(Reverse(candidate)) = self.candidates.pop() {
            self.steps += 1;
            self.join(rules, text, &candidate);
        }
        pieces.clear();
        let whole = self.symbols.iter().filter(|symbol| symbol.len > 0);
        pieces.extend(whole.map(|symbol| Piece { id: symbol.id, len: symbol.len }));
        text.len()
    }

    fn load_units<'a, R: Rules>(
        &mut self,
        rules: &R,
        text: &'a [u8],
        window_len: usize,
    ) -> &'a [u8] {
        self.symbols.clear();
        self.candidates.clear();
        let mut end = 0;
        while end < text.len() && end < window_len {
            let (len, id) = rules.unit(&text[end..]);
            let place = index(self.symbols.len());
            self.symbols.push(Symbol {
                start: index(end),
                len: index(len),
                id,
                prev: place.checked_sub(1).unwrap_or(NO_SYMBOL),
                next: place + 1,
            });
            end += len;
            self.steps += 1;
        }
        if let Some(last) = self.symbols.last_mut() {
            last.next = NO_SYMBOL;
        }
        &text[..end]
    }

    /// Notes that the symbol `left` can be joined with the one after it, if it can.
    fn consider<R: Rules>(&mut self, rules: &R, text: &[u8], left_index: usize) {
        self.steps += 1;
        let left = self.symbols[left_index];
        let Some(right) = self.symbols.get(left.next as usize) else { return };
        let both = &text[left.start as usize..(right.start + right.len) as usize];
        if let Some((priority, id)) = rules.join(left.id, right.id, both) {
            self.candidates.push(Reverse(Candidate {
                priority,
                left: index(left_index),
                left_len: left.len,
                right_len: right.len,
                id,
            }));
        }
    }

    fn join<R: Rules>(&mut self, rules: &R, text: &[u8], candidate: &Candidate) {
        let left_index = candidate.left as usize;
        let left = self.symbols[left_index];
        let Some(&right) = self.symbols.get(left.next as usize) else { return };
        if left.len != candidate.left_len || right.len != candidate.right_len {
            return;
        }
        self.symbols[left.next as usize].len = 0;
        if let Some(after) = self.symbols.get_mut(right.next as usize) {
            after.prev = candidate.left;
        }
        let joined = &mut self.symbols[left_index];
        joined.len += right.len;
        joined.id = candidate.id;
        joined.next = right.next;
        self.consider(rules, text, left_index);
        if left.prev != NO_SYMBOL {
            self.consider(rules, text, left.prev as usize);
        }
    }
}

/// Returns the first piece of a window's unsure end and where it starts.
fn meeting_place(pieces: &[Piece], covered: usize) -> Option<(usize, usize)> {
    let sure = covered - covered / UNSURE_FRACTION;
    let mut offset = 0;
    for (index, piece) in pieces.iter().enumerate() {
        if offset >= sure && index > 0 {
            return Some((index, offset));
        }
        offset += piece.len as usize;
    }
    None
}

fn give(pieces: &[Piece], text: &[u8], emit: &mut impl FnMut(u32, &[u8])) {
    let mut start = 0;
    for piece in pieces {
        let end = start + piece.len as usize;
        emit(piece.id, &text[start..end]);
        start = end;
    }
}

fn index(value: usize) -> u32 {
    u32::try_from(value).expect("texts are shorter than `TEXT_LEN_MAX_BYTES`")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// A vocabulary of strings of `a` to `d` with priorities that need not follow their length.
    struct Letters(HashMap<Vec<u8>, (u32, u32)>);

    impl Letters {
        /// Draws `count` tokens; some priorities are equal when `ties` is set.
        fn new(random: &mut Random, count: u32, ties: bool) -> Self {
            let mut tokens: Vec<Vec<u8>> = b"abcd".iter().map(|&letter| vec![letter]).collect();
            for _ in 0..count {
                let left = tokens[random.below(tokens.len())].clone();
                let right = tokens[random.below(tokens.len())].clone();
                tokens.push([left, right].concat());
            }
            let priority = |random: &mut Random, id: u32| {
                if ties { index(random.below(4)) } else { id }
            };
            let mut ids: Vec<u32> = (0..index(tokens.len())).collect();
            for place in 0..ids.len() {
                ids.swap(place, random.below(place + 1));
            }
            let entry = |(text, id)| (text, (priority(random, id), id));
            Self(tokens.into_iter().zip(ids).map(entry).collect())
        }
    }

    impl Rules for Letters {
        fn unit(&self, text: &[u8]) -> (usize, u32) {
            (1, self.0.get(&text[..1]).map_or(NO_TOKEN, |token| token.1))
        }

        fn join(&self, _: u32, _: u32, both: &[u8]) -> Option<(u32, u32)> {
            self.0.get(both).copied()
        }
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(self.0 >> 33).unwrap() % bound
        }
    }

    /// The meaning of merging: join the best, leftmost pair until there is none.
    fn merge_slowly(rules: &Letters, text: &[u8]) -> Vec<u32> {
        let mut parts: Vec<Vec<u8>> = text.iter().map(|&byte| vec![byte]).collect();
        loop {
            let pairs = parts.windows(2).enumerate();
            let best =
                pairs.filter_map(|(at, pair)| Some((rules.0.get(&pair.concat())?.0, at))).min();
            let Some((_, at)) = best else {
                return parts.iter().map(|part| rules.0[part].1).collect();
            };
            let right = parts.remove(at + 1);
            parts[at].extend(right);
        }
    }

    #[test]
    fn windows_give_what_merging_the_whole_text_gives() {
        let mut random = Random(7);
        for round in 0..400 {
            let rules = Letters::new(&mut random, 1 + round % 40, round % 3 == 0);
            let letters = 1 + random.below(4);
            let len = random.below(300);
            let text: Vec<u8> = (0..len).map(|_| b"abcd"[random.below(letters)]).collect();
            let expected = merge_slowly(&rules, &text);
            for window_len in [8, 16, 64, WINDOW_LEN_BYTES] {
                let mut tokens = Vec::new();
                let mut joined = Vec::new();
                Merger::default().merge_in_windows(&rules, &text, window_len, &mut |id, bytes| {
                    tokens.push(id);
                    joined.extend_from_slice(bytes);
                });
                assert_eq!(tokens, expected, "round {round}, window {window_len}");
                assert_eq!(joined, text);
            }
        }
    }

    #[test]
    fn steps_grow_as_the_text_does() {
        let mut random = Random(3);
        let rules = Letters::new(&mut random, 60, false);
        let steps_per_byte = |text: &[u8]| {
            let mut merger = Merger::default();
            merger.merge(&rules, text, &mut |_, _| {});
            merger.steps / text.len() as u64
        };
        for letters in 1..=4 {
            let text: Vec<u8> = (0..1 << 20).map(|_| b"abcd"[random.below(letters)]).collect();
            assert!(steps_per_byte(&text[..4096]) <= 5);
            assert!(steps_per_byte(&text) <= 6);
        }
    }
}
