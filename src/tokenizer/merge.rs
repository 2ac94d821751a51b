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
        let mut window_len = WINDOW_LEN_BYTES;
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
