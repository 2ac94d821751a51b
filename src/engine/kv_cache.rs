//! Keys and values of every sequence, in pages of 32 positions.
//!
//! The pool is allocated once. A sequence is given all pages that it may ever need when it starts,
//! so that it never fails midway; where a page lies depends on positions only. Pages are zeroed
//! when they are given back.

use half::f16;
use kernels::ops::{KvPages, KvPagesMut, PAGE_LEN, Place};

use super::{Error, ModelConfig};

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// As 32-bit floats: the exact mode.
    F32,
    /// As 16-bit floats.
    F16,
}

impl KvType {
    fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// A running sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeqId {
    slot: u32,
    /// Counts the sequences of a slot, so that an old name finds nothing.
    turn: u32,
}

/// What a slot holds.
#[derive(Clone, Debug, Default)]
struct Slot {
    turn: u32,
    is_taken: bool,
    n_pages: usize,
    /// Positions that the sequence may have.
    len_max: usize,
    /// Positions that it has.
    len: usize,
}

enum Store {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

/// The pool of pages and the sequences that own them.
pub(super) struct KvCache {
    /// `[layer][page][kv_head][K, V][32 * head_dim]`
    store: Store,
    layer_len: usize,
    /// Values of a page in one layer.
    page_len: usize,
    free: Vec<u32>,
    slots: Vec<Slot>,
    /// `[slot][pages_a_sequence]`
    tables: Vec<u32>,
    pages_a_sequence: usize,
}

impl KvCache {
    /// Returns the bytes of a pool for so many positions.
    pub(super) fn size(config: &ModelConfig, ty: KvType, positions: usize) -> Option<usize> {
        let a_position =
            config.n_layers.checked_mul(2 * config.kv_dim())?.checked_mul(ty.size())?;
        positions.checked_next_multiple_of(PAGE_LEN)?.checked_mul(a_position)
    }

    /// Allocates a pool of `positions` for `sequences_max` sequences of `context_len` at most.
    pub(super) fn new(
        config: &ModelConfig,
        ty: KvType,
        positions: usize,
        context_len: usize,
        sequences_max: usize,
    ) -> Self {
        let n_pages = u32::try_from(positions.div_ceil(PAGE_LEN)).expect("the options are bounded");
        let page_len = 2 * PAGE_LEN * config.kv_dim();
        let layer_len = page_len * n_pages as usize;
        let len = layer_len * config.n_layers;
        let pages_a_sequence = context_len.div_ceil(PAGE_LEN);
        Self {
            store: match ty {
                KvType::F32 => Store::F32(vec![0.0; len]),
                KvType::F16 => Store::F16(vec![f16::ZERO; len]),
            },
            layer_len,
            page_len,
            free: (0..n_pages).rev().collect(),
            slots: vec![Slot::default(); sequences_max],
            tables: vec![0; sequences_max * pages_a_sequence],
            pages_a_sequence,
        }
    }

    /// Starts a sequence that may have `len_max` positions.
    pub(super) fn start(&mut self, len_max: usize) -> Result<SeqId, Error> {
        let needed = len_max.div_ceil(PAGE_LEN);
        if needed > self.pages_a_sequence {
            return Err(Error::SequenceFull);
        }
        let index = self.slots.iter().position(|slot| !slot.is_taken);
        let index = index.ok_or(Error::NoFreeSequence)?;
        let free = self.free.len();
        if needed > free {
            return Err(Error::NoFreePages { needed, free });
        }
        let table = &mut self.tables[index * self.pages_a_sequence..][..needed];
        for (entry, page) in table.iter_mut().zip(self.free.drain(free - needed..).rev()) {
            *entry = page;
        }
        let slot = &mut self.slots[index];
        let turn = slot.turn.wrapping_add(1);
        *slot = Slot { turn, is_taken: true, n_pages: needed, len_max, len: 0 };
        let slot = u32::try_from(index).expect("the options are bounded");
        Ok(SeqId { slot, turn })
    }

    /// Ends a sequence: zeroes its pages and gives them back.
    pub(super) fn end(&mut self, seq: SeqId) -> Result<(), Error> {
        let index = self.index(seq)?;
        let n_pages = self.slots[index].n_pages;
        for i in 0..n_pages {
            let page = self.tables[index * self.pages_a_sequence + i];
            self.erase(page as usize);
            self.free.push(page);
        }
        let slot = &mut self.slots[index];
        *slot = Slot { turn: slot.turn, ..Slot::default() };
        Ok(())
    }

    fn erase(&mut self, page: usize) {
        let at = page * self.page_len;
        match &mut self.store {
            Store::F32(store) => {
                let layers = store.chunks_exact_mut(self.layer_len);
                layers.for_each(|layer| layer[at..][..self.page_len].fill(0.0));
            }
            Store::F16(store) => {
                let layers = store.chunks_exact_mut(self.layer_len);
                layers.for_each(|layer| layer[at..][..self.page_len].fill(f16::ZERO));
            }
        }
    }

    fn index(&self, seq: SeqId) -> Result<usize, Error> {
        let index = seq.slot as usize;
        let slot = self.slots.get(index).ok_or(Error::UnknownSequence)?;
        if slot.is_taken && slot.turn == seq.turn { Ok(index) } else { Err(Error::UnknownSequence) }
    }

    /// Returns the number of positions that a sequence has.
    pub(super) fn len(&self, seq: SeqId) -> Result<usize, Error> {
        Ok(self.slots[self.index(seq)?].len)
    }

    /// Gives a sequence its next position.
    pub(super) fn advance(&mut self, seq: SeqId) -> Result<Place, Error> {
        let index = self.index(seq)?;
        let slot = &mut self.slots[index];
        if slot.len == slot.len_max {
            return Err(Error::SequenceFull);
        }
        slot.len += 1;
        Ok(Place { table: index * self.pages_a_sequence, position: slot.len - 1 })
    }

    /// Takes back the last position of a sequence whose batch was refused.
    pub(super) fn retreat(&mut self, seq: SeqId) {
        if let Ok(index) = self.index(seq) {
            self.slots[index].len -= 1;
        }
    }

    /// Takes back the positions from `len` on; what they hold is never read again.
    pub(super) fn rewind(&mut self, seq: SeqId, len: usize) -> Result<(), Error> {
        let index = self.index(seq)?;
        let slot = &mut self.slots[index];
        slot.len = slot.len.min(len);
        Ok(())
    }

    /// Returns the free pages.
    pub(super) fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Returns the page numbers of all sequences.
    pub(super) fn tables(&self) -> &[u32] {
        &self.tables
    }

    /// Returns the pages of a layer.
    pub(super) fn layer(&self, layer: usize) -> KvPages<'_> {
        let at = layer * self.layer_len;
        match &self.store {
            Store::F32(store) => KvPages::F32(&store[at..][..self.layer_len]),
            Store::F16(store) => KvPages::F16(&store[at..][..self.layer_len]),
        }
    }

    /// Returns the pages of a layer, to be written, and the page numbers.
    pub(super) fn layer_mut(&mut self, layer: usize) -> (KvPagesMut<'_>, &[u32]) {
        let at = layer * self.layer_len;
        let pages = match &mut self.store {
            Store::F32(store) => KvPagesMut::F32(&mut store[at..][..self.layer_len]),
            Store::F16(store) => KvPagesMut::F16(&mut store[at..][..self.layer_len]),
        };
        (pages, &self.tables)
    }

    /// Returns whether every value of the pool is zero.
    #[cfg(test)]
    pub(super) fn is_zero(&self) -> bool {
        match &self.store {
            Store::F32(store) => store.iter().all(|value| value.to_bits() == 0),
            Store::F16(store) => store.iter().all(|value| value.to_bits() == 0),
        }
    }
}
