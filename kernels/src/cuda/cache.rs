//! Keys and values of some layers on the card, in the pages of `crate::ops`.
//!
//! Behind those that are dealt out there is a page, and behind the page lists an entry that names it, for
//! what fills a batch up: it holds nothing of anybody.

use super::buffer::{Buffer, HostSource, dim, size};
use super::{Card, CudaError};
use crate::ops::{KV_BLOCK_LEN, PAGE_LEN};

/// Pages that a launch zeroes at most.
const ZEROED_MAX: usize = 1024;
/// Bytes that a thread zeroes at once.
const PIECE_LEN: usize = 16;

/// How pages hold values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageType {
    /// As 32-bit floats.
    F32,
    /// As 16-bit floats.
    F16,
    /// As 8-bit integers, each block of 32 with a 16-bit scale.
    Q8_0,
}

impl PageType {
    fn value_size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Q8_0 => 1,
        }
    }
}

/// How much a cache is for.
#[derive(Clone, Copy, Debug)]
pub struct CacheShape {
    /// How pages hold values.
    pub pages: PageType,
    /// Layers.
    pub n_layers: usize,
    /// Pages of a layer.
    pub n_pages: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Entries of all page lists.
    pub tables_len: usize,
}

impl CacheShape {
    /// Keys and values of a page of a layer.
    fn page_len(&self) -> usize {
        2 * PAGE_LEN * self.n_kv_heads * self.head_dim
    }

    /// Pages of a layer, the spare one included.
    fn held_pages(&self) -> Option<usize> {
        self.n_pages.checked_add(1)
    }

    fn layer_size(&self) -> Option<usize> {
        self.page_len().checked_mul(self.held_pages()?)?.checked_mul(self.pages.value_size())
    }

    /// 16-bit scales of a layer.
    fn scales_len(&self) -> Option<usize> {
        match self.pages {
            PageType::Q8_0 => (self.page_len() / KV_BLOCK_LEN).checked_mul(self.held_pages()?),
            _ => Some(0),
        }
    }

    /// Returns the bytes that it takes; nothing if they cannot be addressed.
    #[must_use]
    pub fn size(&self) -> Option<usize> {
        let scales = self.scales_len()?.checked_mul(2)?;
        let layers = self.layer_size()?.checked_add(scales)?.checked_mul(self.n_layers)?;
        layers.checked_add(self.tables_len.checked_add(1 + ZEROED_MAX)?.checked_mul(4)?)
    }
}

/// The pages of some layers, and the page lists of all sequences.
#[derive(Debug)]
pub struct Cache<'c> {
    card: &'c Card<'c>,
    shape: CacheShape,
    /// `[layer][page]`
    pages: Buffer<'c, u8>,
    /// `[layer][page]`, with pages of 8 bits.
    scales: Option<Buffer<'c, u16>>,
    tables: Buffer<'c, u32>,
    /// What `tables` is copied from.
    staged: HostSource<'c, u32>,
    /// Pages that are being zeroed.
    zeroed: Buffer<'c, u32>,
}

impl<'c> Cache<'c> {
    /// Allocates pages of zeros.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfMemory`] with what is free.
    pub fn new(card: &'c Card<'c>, shape: CacheShape) -> Result<Self, CudaError> {
        shape.size().ok_or(CudaError::OutOfBounds)?;
        let layers = |len: Option<usize>| len.unwrap_or(0) * shape.n_layers;
        let scales = match shape.pages {
            PageType::Q8_0 => Some(Buffer::new(card, layers(shape.scales_len()))?),
            _ => None,
        };
        let mut cache = Self {
            card,
            pages: Buffer::new(card, layers(shape.layer_size()))?,
            scales,
            tables: Buffer::new(card, shape.tables_len + 1)?,
            staged: HostSource::new(card, shape.tables_len + 1)?,
            zeroed: Buffer::new(card, ZEROED_MAX)?,
            shape,
        };
        let spare = u32::try_from(shape.n_pages).map_err(|_| CudaError::OutOfBounds)?;
        cache.staged.values_mut()?[shape.tables_len] = spare;
        cache.tables.start_write(&cache.staged, shape.tables_len + 1)?;
        Ok(cache)
    }

    /// Starts the copy of the page lists of all sequences to the card.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    ///
    /// # Panics
    ///
    /// Panics if they have more entries than was said, or an entry is no page.
    pub fn set_tables(&mut self, tables: &[u32]) -> Result<(), CudaError> {
        let is_page = |page: &u32| (*page as usize) < self.shape.n_pages;
        assert!(tables.iter().all(is_page), "page lists hold pages");
        assert!(tables.len() <= self.shape.tables_len, "page lists have room");
        self.staged.values_mut()?[..tables.len()].copy_from_slice(tables);
        self.tables.start_write(&self.staged, tables.len())
    }

    /// Zeroes pages in every layer, and waits for it.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    ///
    /// # Panics
    ///
    /// Panics if there is no such page.
    pub fn zero(&mut self, pages: &[u32]) -> Result<(), CudaError> {
        let is_page = |page: &u32| (*page as usize) < self.shape.n_pages;
        assert!(pages.iter().all(is_page), "the pages exist");
        let Self { card, shape, .. } = self;
        let page_size = shape.page_len() * shape.pages.value_size();
        let page_scales = shape.page_len() / KV_BLOCK_LEN * 2;
        for pages in pages.chunks(ZEROED_MAX) {
            self.zeroed.write(0, pages)?;
            let list = self.zeroed.pointer(card);
            let zero = |to: [u8; 8], page_size: usize| {
                let pieces = page_size / PIECE_LEN;
                let grid = [dim(pieces.div_ceil(256)), dim(pages.len()), dim(shape.n_layers)];
                let layer = size(pieces * (shape.n_pages + 1));
                let arguments: [&[u8]; 4] = [&to, &layer, &size(pieces), &list];
                // SAFETY: the buffer has so many layers of so many pages, of which these are some.
                unsafe { card.launch("zero_pages", grid, 256, 0, &arguments) }
            };
            zero(self.pages.pointer(card), page_size)?;
            if let Some(scales) = &self.scales {
                zero(scales.pointer(card), page_scales)?;
            }
        }
        card.finish()
    }

    pub(super) fn shape(&self) -> &CacheShape {
        &self.shape
    }

    pub(super) fn tables(&self, card: &Card<'_>) -> [u8; 8] {
        self.tables.pointer(card)
    }

    /// The pages and scales of a layer.
    pub(super) fn layer(&self, card: &Card<'_>, layer: usize) -> [[u8; 8]; 2] {
        assert!(layer < self.shape.n_layers, "the layer is on the card");
        let pages = self.pages.len() / self.shape.n_layers * layer;
        let scales = |scales: &Buffer<'_, u16>| {
            scales.pointer_at(card, scales.len() / self.shape.n_layers * layer)
        };
        let none = super::buffer::NULL;
        [self.pages.pointer_at(card, pages), self.scales.as_ref().map_or(none, scales)]
    }

    /// Returns whether every page that is dealt out is zero, for tests.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    pub fn is_zero(&self) -> Result<bool, CudaError> {
        let mut pages = vec![0; self.pages.len()];
        self.pages.read(0, &mut pages)?;
        let mut scales = vec![0; self.scales.as_ref().map_or(0, Buffer::len)];
        if let Some(buffer) = &self.scales {
            buffer.read(0, &mut scales)?;
        }
        let CacheShape { n_layers, n_pages, .. } = self.shape;
        Ok(are_zero(&pages, n_layers, n_pages) && are_zero(&scales, n_layers, n_pages))
    }
}

/// Whether all but the last page of each layer are zero.
fn are_zero<T: Copy + Default + PartialEq>(values: &[T], n_layers: usize, n_pages: usize) -> bool {
    let layer = values.len() / n_layers;
    let dealt = layer / (n_pages + 1) * n_pages;
    let is_zero =
        |index: usize| values[index * layer..][..dealt].iter().all(|value| *value == T::default());
    (0..n_layers).all(is_zero)
}
