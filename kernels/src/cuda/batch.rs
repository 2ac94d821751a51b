//! What the card is told of a batch, in one copy: tokens, where they stand, what of them is wanted,
//! which of them are neighbours, and the rotations of their heads.
//!
//! Every index that a kernel follows is checked here, on the way to the card. Where a batch is filled up to
//! a shape, what fills it is the token 0 on a page that is nobody's.

use core::ops::Range;

use super::buffer::{Buffer, HostSource, int};
use super::shape::{Bounds, Shape};
use super::{Card, CudaError};
use crate::ops::{PAGE_LEN, Place, Rope};

/// What the parts of the copy start at multiples of, in bytes.
const ALIGNMENT: usize = 16;
/// Neighbours from which on they are read as a prompt: a warp goes through the text for some of them.
/// Fewer are cheaper as single tokens, for which a block goes through each part of the text.
const PROMPT_LEN_MIN: usize = 9;

/// The parts of the copy.
#[derive(Clone, Copy)]
enum Part {
    Tokens,
    Places,
    Wanted,
    Runs,
    Turns,
    LocalTurns,
}

const PARTS_COUNT: usize = 6;

/// Tokens after each other that attention treats alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: usize,
    pub(super) len: usize,
    /// Parts of the longest text.
    pub(super) splits: usize,
}

/// What batches are made for.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Tokens.
    pub tokens: usize,
    /// Tokens whose logits are wanted.
    pub logits: usize,
    /// Positions of a sequence.
    pub positions: usize,
    /// Entries of all page lists, as of the cache.
    pub tables_len: usize,
    /// Pairs of a head that turn, in global and in local layers; 0 where there are no local ones.
    pub pairs: [usize; 2],
    /// Neighbours of a prompt that a warp has at once: see [`super::Heads::run_len`].
    pub run_len: usize,
}

/// What a batch is made of.
#[derive(Clone, Copy)]
pub struct Contents<'a> {
    /// Its tokens.
    pub tokens: &'a [u32],
    /// Where each stands.
    pub places: &'a [Place],
    /// Which tokens' logits are wanted.
    pub wanted: &'a [usize],
    /// The rotations of global layers.
    pub rope: &'a Rope,
    /// The rotations of local layers, if there are any.
    pub local_rope: Option<&'a Rope>,
}

/// A batch on the card.
pub struct Batch<'c> {
    card: &'c Card<'c>,
    memory: Buffer<'c, u8>,
    staged: HostSource<'c, u8>,
    limits: BatchLimits,
    bounds: Bounds,
    /// Whether `memory` holds what the other fields say.
    is_set: bool,
    rows: usize,
    wanted_len: usize,
    /// Prompts, cut.
    runs: Vec<Span>,
    /// Tokens that are no part of a prompt.
    singles: Vec<Span>,
    shape: Option<Shape>,
}

impl core::fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Batch").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl<'c> Batch<'c> {
    /// Allocates for batches within limits.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfMemory`] and [`CudaError::NoPinnedMemory`] with what is needed.
    pub fn new(card: &'c Card<'c>, limits: BatchLimits) -> Result<Self, CudaError> {
        let size = Self::size(&limits);
        Ok(Self {
            card,
            memory: Buffer::new(card, size)?,
            staged: HostSource::new(card, size)?,
            limits,
            bounds: Bounds::new(limits.tokens, limits.logits, limits.positions),
            is_set: false,
            rows: 0,
            wanted_len: 0,
            runs: Vec::with_capacity(limits.tokens),
            singles: Vec::with_capacity(limits.tokens),
            shape: None,
        })
    }

    /// Returns the bytes that it takes on the card.
    #[must_use]
    pub fn size(limits: &BatchLimits) -> usize {
        parts(limits, limits.tokens)[PARTS_COUNT - 1].end
    }

    /// Starts the copy of a batch to the card.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    ///
    /// # Panics
    ///
    /// Panics if the parts are not of the same tokens, or are beyond the limits.
    pub fn set(&mut self, contents: &Contents<'_>) -> Result<(), CudaError> {
        self.card.refuse_while_recording()?;
        self.is_set = false;
        self.check(contents);
        self.arrange(contents);
        self.stage(contents)?;
        let end = parts(&self.limits, self.rows)[PARTS_COUNT - 1].end;
        self.memory.start_write(&self.staged, end)?;
        self.is_set = true;
        Ok(())
    }

    /// Panics if the contents are beyond the limits.
    fn check(&self, contents: &Contents<'_>) {
        let Contents { tokens, places, wanted, rope, local_rope } = *contents;
        let (limits, n) = (&self.limits, tokens.len());
        assert!(n <= limits.tokens && wanted.len() <= limits.logits, "the batch is small enough");
        assert_eq!(places.len(), n, "a place for each token");
        assert!(wanted.iter().all(|token| *token < n), "what is wanted is in the batch");
        let is_listed = |place: &Place| {
            let page = place.table.checked_add(place.position / PAGE_LEN);
            page.is_some_and(|page| page < limits.tables_len)
        };
        assert!(places.iter().all(is_listed), "places lie in the page lists");
        assert!(places.iter().all(|place| place.position < limits.positions), "texts are short");
        let [pairs, local_pairs] = limits.pairs;
        assert_eq!(rope.turns().len(), n * pairs, "the rotations are of the batch");
        let turns = local_rope.map_or(0, |rope| rope.turns().len());
        assert_eq!(turns, n * local_pairs, "the rotations are of the batch");
    }

    /// Tells prompts, cut into runs, from single tokens, and finds the shape.
    fn arrange(&mut self, contents: &Contents<'_>) {
        let Contents { places, wanted, .. } = *contents;
        let n = places.len();
        (self.rows, self.wanted_len, self.shape) = (n, wanted.len(), None);
        self.runs.clear();
        self.singles.clear();
        let mut first = 0;
        while first < n {
            let len = neighbours(&places[first..]);
            let end = first + len;
            let splits = self.bounds.splits(places[end - 1].position);
            if len >= PROMPT_LEN_MIN {
                let run_len = self.run_len();
                let run = |first: usize| Span { first, len: run_len.min(end - first), splits };
                self.runs.extend((first..end).step_by(run_len).map(run));
            } else {
                match self.singles.last_mut() {
                    Some(span) if span.first + span.len == first => {
                        (span.len, span.splits) = (span.len + len, span.splits.max(splits));
                    }
                    _ => self.singles.push(Span { first, len, splits }),
                }
            }
            first = end;
        }
        let all_are_wanted = wanted.iter().copied().eq(0..n);
        if let ([span], [], true) = (&self.singles[..], &self.runs[..], all_are_wanted)
            && let Some(rows) = self.bounds.rows(n)
        {
            let shape = Shape { rows, splits: span.splits };
            self.take(shape);
        }
    }

    /// Takes a shape on.
    fn take(&mut self, shape: Shape) {
        let Shape { rows, splits } = shape;
        self.shape = Some(shape);
        (self.rows, self.wanted_len) = (rows, rows);
        self.runs.clear();
        self.singles.clear();
        self.singles.push(Span { first: 0, len: rows, splits });
    }

    /// Writes all parts where they are copied from.
    fn stage(&mut self, contents: &Contents<'_>) -> Result<(), CudaError> {
        let Contents { tokens, places, wanted, rope, local_rope } = *contents;
        let (n, rows) = (tokens.len(), self.rows);
        let parts = parts(&self.limits, rows);
        let bytes = self.staged.values_mut()?;
        let mut put = |part: Part, values: &mut dyn Iterator<Item = [u8; 4]>| {
            let target = bytes[parts[part as usize].clone()].chunks_exact_mut(4);
            target.zip(values).for_each(|(to, value)| to.copy_from_slice(&value));
        };
        let pad = n..rows;
        let tokens = tokens.iter().map(|token| token.to_ne_bytes());
        put(Part::Tokens, &mut tokens.chain(pad.clone().map(|_| [0; 4])));
        let spare = Place { table: self.limits.tables_len, position: 0 };
        let places = places.iter().copied().chain(pad.clone().map(|_| spare));
        put(Part::Places, &mut places.flat_map(|place| [int(place.table), int(place.position)]));
        put(Part::Wanted, &mut wanted.iter().copied().chain(pad.clone()).map(int));
        put(Part::Runs, &mut self.runs.iter().flat_map(|run| [int(run.first), int(run.len)]));
        for (part, rope, pairs) in [
            (Part::Turns, Some(rope), self.limits.pairs[0]),
            (Part::LocalTurns, local_rope, self.limits.pairs[1]),
        ] {
            let turns = rope.map_or(&[][..], Rope::turns).iter().copied();
            let turns = turns.chain((0..pad.len() * pairs).map(|_| (1.0, 0.0)));
            put(part, &mut turns.flat_map(|(cos, sin)| [cos.to_ne_bytes(), sin.to_ne_bytes()]));
        }
        Ok(())
    }

    /// Returns the shapes that batches may have.
    #[must_use]
    pub fn shapes(&self) -> Vec<Shape> {
        self.bounds.shapes()
    }

    /// Returns the shape of the batch, if it has one.
    #[must_use]
    pub fn shape(&self) -> Option<Shape> {
        self.shape
    }

    /// Takes a shape on, so that its launches can be recorded, and forgets what it held.
    ///
    /// # Errors
    ///
    /// [`CudaError::WhileRecording`] if one is recorded already.
    ///
    /// # Panics
    ///
    /// Panics if batches have no such shape.
    pub(super) fn assume(&mut self, shape: Shape) -> Result<(), CudaError> {
        self.card.refuse_while_recording()?;
        assert!(self.bounds.shapes().contains(&shape), "batches have this shape");
        self.is_set = false;
        self.take(shape);
        Ok(())
    }

    /// Where it lies, and its shape if it holds a batch of one.
    pub(super) fn holds(&self) -> (u64, Option<Shape>) {
        (self.memory.address(), self.shape.filter(|_| self.is_set))
    }

    /// Returns how many rows its launches compute: its tokens, and those that fill a shape up.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns how many of them logits are computed of.
    #[must_use]
    pub fn wanted_len(&self) -> usize {
        self.wanted_len
    }

    /// Zeroes what it holds of the last tokens.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    pub fn erase(&mut self) -> Result<(), CudaError> {
        self.is_set = false;
        self.staged.values_mut()?.fill(0);
        self.memory.erase()
    }

    /// Where a part lies, for a launch of what the batch holds, or is recorded for.
    fn pointer(&self, card: &Card<'_>, part: Part, offset: usize) -> [u8; 8] {
        match self.card.recorded.get() {
            Some(recorded) => {
                let own = (self.memory.address(), self.shape);
                assert_eq!((recorded.0, Some(recorded.1)), own, "a step is of one batch");
            }
            None => assert!(self.is_set, "the batch is set"),
        }
        self.memory.pointer_at(card, parts(&self.limits, self.rows)[part as usize].start + offset)
    }

    pub(super) fn tokens(&self, card: &Card<'_>) -> [u8; 8] {
        self.pointer(card, Part::Tokens, 0)
    }

    /// The place of a token, and of those after it.
    pub(super) fn places_from(&self, card: &Card<'_>, token: usize) -> [u8; 8] {
        self.pointer(card, Part::Places, token * 8)
    }

    pub(super) fn wanted(&self, card: &Card<'_>) -> [u8; 8] {
        self.pointer(card, Part::Wanted, 0)
    }

    pub(super) fn runs(&self, card: &Card<'_>) -> [u8; 8] {
        self.pointer(card, Part::Runs, 0)
    }

    pub(super) fn runs_len(&self) -> usize {
        self.runs.len()
    }

    /// Most tokens of a run.
    pub(super) fn run_len(&self) -> usize {
        self.limits.run_len.max(1)
    }

    pub(super) fn singles(&self) -> &[Span] {
        &self.singles
    }

    pub(super) fn tables_len(&self) -> usize {
        self.limits.tables_len
    }

    /// The rotations of global or local layers, and how many pairs of a head turn.
    pub(super) fn turns(&self, card: &Card<'_>, is_local: bool) -> ([u8; 8], usize) {
        let [pairs, local_pairs] = self.limits.pairs;
        match is_local && local_pairs > 0 {
            true => (self.pointer(card, Part::LocalTurns, 0), local_pairs),
            false => (self.pointer(card, Part::Turns, 0), pairs),
        }
    }
}

/// Where the parts of a batch of so many rows lie.
fn parts(limits: &BatchLimits, rows: usize) -> [Range<usize>; PARTS_COUNT] {
    let [pairs, local_pairs] = limits.pairs;
    let mut end = 0_usize;
    [4, 8, 4, 8, 8 * pairs, 8 * local_pairs].map(|a_row| {
        let start = end.next_multiple_of(ALIGNMENT);
        end = start + a_row * rows;
        start..end
    })
}

/// Returns how many places follow each other in one sequence, the first included.
fn neighbours(places: &[Place]) -> usize {
    let follows = |pair: &&[Place]| {
        pair[0].table == pair[1].table && pair[0].position + 1 == pair[1].position
    };
    1 + places.windows(2).take_while(follows).count()
}
