//! The packed model image: what a loader writes and every worker of the model maps.
//!
//! | part | size |
//! |---|---|
//! | the GGUF header, as in the file | `data_offset`, filled up with zeros to a multiple of 64 |
//! | each tensor, in the order of the header | matrices packed, vectors as in the file, each filled up to a multiple of 64 |
//!
//! Places are computed from the header alone. [`ImageLayout::new`] makes every check of metadata,
//! names and shapes, so that nothing is written for a model that the engine would refuse.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use kernels::Pool;

use super::weights::{self, Views, Weights};
use super::{Error, ModelConfig};
use crate::gguf::{self, Header, TensorInfo};

/// What every part of the image starts at a multiple of, in bytes.
pub const IMAGE_ALIGNMENT: usize = 64;

/// Bytes of a part of a tensor in the file, about: a task of one thread.
pub const PART_SIZE: usize = 1 << 20;
/// Most threads that pack; each holds some parts of the file beside the image.
const PACK_THREADS_MAX: usize = 8;
/// Parts for each thread that are packed at once.
const PARTS_A_THREAD: usize = 4;
/// Rows that are packed together.
const TILE_ROWS: usize = 16;

/// Some rows of a tensor, which are packed without the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Index in the header.
    tensor: usize,
    rows: usize,
    /// Its bytes in the file.
    pub source: Range<usize>,
    /// Its bytes in the image.
    target: Range<usize>,
}

/// Where the parts of an image lie.
#[derive(Clone, Debug)]
pub struct ImageLayout {
    config: ModelConfig,
    header_len: usize,
    /// For each tensor of the header, where it starts in the file.
    starts: Vec<usize>,
    /// For each tensor of the header, its place in the image.
    ranges: Vec<Range<usize>>,
    total_len: usize,
}

impl ImageLayout {
    /// Checks a model and lays out its image.
    ///
    /// # Errors
    ///
    /// Names what the engine cannot compute: a metadata key, a tensor, a shape.
    pub fn new(header: &Header) -> Result<Self, Error> {
        let config = ModelConfig::from_header(header)?;
        weights::check(&config, header)?;
        let header_len = usize::try_from(header.data_offset).map_err(|_| Error::ImageTooLarge)?;
        let mut end = header_len.next_multiple_of(IMAGE_ALIGNMENT);
        let mut ranges = Vec::with_capacity(header.tensors.len());
        for tensor in &header.tensors {
            let start = end;
            end = size_in_image(tensor)
                .and_then(|size| size.checked_next_multiple_of(IMAGE_ALIGNMENT))
                .and_then(|size| start.checked_add(size))
                .filter(|&end| isize::try_from(end).is_ok())
                .ok_or(Error::ImageTooLarge)?;
            ranges.push(start..end);
        }
        let starts = header.tensors.iter().map(|tensor| {
            let end = usize::try_from(header.data_range(tensor).end).ok();
            let size = usize::try_from(tensor.size).ok();
            end.and_then(|end| end.checked_sub(size?)).ok_or(Error::ImageTooLarge)
        });
        let starts = starts.collect::<Result<_, _>>()?;
        Ok(Self { config, header_len, starts, ranges, total_len: end })
    }

    /// Returns the bytes of the whole image.
    pub fn total_len(&self) -> usize {
        self.total_len
    }

    /// Returns the bytes of the header, which are copied from the file's start.
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Returns where the tensor of this index of the header lies in the image.
    pub fn tensor_range(&self, index: usize) -> Range<usize> {
        self.ranges[index].clone()
    }

    /// Returns the hyperparameters.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns the threads that pack: the machine's, up to a number.
    pub fn pack_pool() -> Pool {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Pool::new(threads.min(PACK_THREADS_MAX))
    }

    /// Cuts all tensors into parts, in the order of the file, and those into groups that are
    /// packed one after the other, each on so many threads.
    ///
    /// A group's source is not needed afterwards, so a loader can give its pages back as it goes.
    ///
    /// # Panics
    ///
    /// Panics if the header is not of this layout.
    pub fn groups(&self, header: &Header, threads: usize) -> Vec<Vec<Part>> {
        let mut order: Vec<usize> = (0..header.tensors.len()).collect();
        order.sort_by_key(|&index| self.starts[index]);
        let parts = order.into_iter().flat_map(|index| self.parts(index, &header.tensors[index]));
        let size_max = PART_SIZE * PARTS_A_THREAD * threads;
        let (mut groups, mut size) = (vec![Vec::new()], 0);
        for part in parts {
            let len = part.source.len();
            match groups.last_mut() {
                Some(group) if size + len <= size_max || group.is_empty() => {
                    size += len;
                    group.push(part);
                }
                _ => {
                    size = len;
                    groups.push(vec![part]);
                }
            }
        }
        groups
    }

    /// Cuts a tensor into parts, each of [`PART_SIZE`] about.
    fn parts(&self, index: usize, tensor: &TensorInfo) -> Vec<Part> {
        let (start, whole) = (self.starts[index], self.ranges[index].clone());
        let (rows, cols) = if weights::is_matrix(tensor) {
            dims(tensor).expect("the layout has a place for the tensor")
        } else {
            (1, 0)
        };
        let size = usize::try_from(tensor.size).expect("the layout has a place for the tensor");
        let row_size = size / rows.max(1);
        let step = (PART_SIZE / row_size.max(1)).next_multiple_of(TILE_ROWS).max(TILE_ROWS);
        let packed_size = |rows| kernels::packed_size(tensor.ty, rows, cols);
        let step_size = packed_size(step).filter(|_| rows > step);
        // Formats without tiles may only be cut where a part ends without filling up.
        let last = (rows - 1) / step;
        let sum = step_size.and_then(|size| Some(size * last + packed_size(rows - last * step)?));
        let (Some(step_size), true) = (step_size, sum == packed_size(rows)) else {
            return vec![Part { tensor: index, rows, source: start..start + size, target: whole }];
        };
        let part = |i: usize| {
            let rows = step.min(rows - i * step);
            let (source, target) = (start + i * step * row_size, whole.start + i * step_size);
            let end = if i == last { whole.end } else { target + step_size };
            let source = source..source + rows * row_size;
            Part { tensor: index, rows, source, target: target..end }
        };
        (0..=last).map(part).collect()
    }

    /// Returns the bytes of the image that a group of parts is written to, and what lies between them.
    pub fn group_range(group: &[Part]) -> Range<usize> {
        let start = group.iter().map(|part| part.target.start).min();
        let end = group.iter().map(|part| part.target.end).max();
        start.unwrap_or(0)..end.unwrap_or(0)
    }

    /// Writes a group of parts, each on one thread of the pool. What is written does not depend on
    /// the number of threads.
    ///
    /// `source` holds the parts' bytes in the file; its first byte has the offset `source_start`.
    ///
    /// # Panics
    ///
    /// Panics if a part's bytes are not in `source`, or `image` is not `total_len` long.
    pub fn pack_group(
        &self,
        pool: &Pool,
        header: &Header,
        group: &[Part],
        (source, source_start): (&[u8], usize),
        image: &mut [u8],
    ) {
        assert_eq!(image.len(), self.total_len, "the image has its length");
        let mut order: Vec<&Part> = group.iter().collect();
        order.sort_by_key(|part| part.target.start);
        // Each target is locked once, by the thread that writes it.
        let (mut tasks, mut rest, mut at) = (Vec::with_capacity(order.len()), image, 0);
        for part in order {
            let (_, from_target) = rest.split_at_mut(part.target.start - at);
            let (target, after) = from_target.split_at_mut(part.target.len());
            tasks.push((part, Mutex::new(target)));
            (rest, at) = (after, part.target.end);
        }
        pool.run(tasks.len(), &|task| {
            let (part, target) = &tasks[task];
            let source = &source[part.source.start - source_start..][..part.source.len()];
            let mut target = target.lock().unwrap_or_else(PoisonError::into_inner);
            pack_part(&header.tensors[part.tensor], part.rows, source, &mut target);
        });
    }

    /// Writes the whole image of a file that is in memory.
    ///
    /// # Panics
    ///
    /// Panics if `file` is not the file of `header`, or `image` is not `total_len` long.
    pub fn pack(&self, pool: &Pool, header: &Header, file: &[u8], image: &mut [u8]) {
        image[..self.header_len].copy_from_slice(&file[..self.header_len]);
        for group in self.groups(header, pool.threads()) {
            self.pack_group(pool, header, &group, (file, 0), image);
        }
    }
}

/// Writes some rows of a tensor, and zeros behind them.
fn pack_part(tensor: &TensorInfo, rows: usize, source: &[u8], target: &mut [u8]) {
    let packed = if weights::is_matrix(tensor) {
        let (_, cols) = dims(tensor).expect("the layout has a place for the tensor");
        let size = kernels::packed_size(tensor.ty, rows, cols);
        let size = size.expect("the layout has a place for the tensor");
        kernels::pack(tensor.ty, rows, cols, source, &mut target[..size]);
        size
    } else {
        target[..source.len()].copy_from_slice(source);
        source.len()
    };
    target[packed..].fill(0);
}

fn dims(tensor: &TensorInfo) -> Option<(usize, usize)> {
    Some((usize::try_from(tensor.rows()).ok()?, usize::try_from(tensor.cols()).ok()?))
}

/// Returns the bytes of a tensor in the image, without what fills it up.
fn size_in_image(tensor: &TensorInfo) -> Option<usize> {
    if weights::is_matrix(tensor) {
        let (rows, cols) = dims(tensor)?;
        kernels::packed_size(tensor.ty, rows, cols)
    } else {
        usize::try_from(tensor.size).ok()
    }
}

/// A model, as views into its image.
pub struct Model<'m> {
    header: Header,
    config: ModelConfig,
    pub(super) weights: Weights<'m>,
    weights_len: usize,
}

impl<'m> Model<'m> {
    /// Views an image; it may be longer than the model.
    ///
    /// # Errors
    ///
    /// As [`ImageLayout::new`], or [`Error::ImageTruncated`].
    pub fn from_image(image: &'m [u8]) -> Result<Self, Error> {
        // The places in the file are of no use here: the file may be of any length.
        let header = gguf::parse(image, u64::MAX)?;
        let layout = ImageLayout::new(&header)?;
        if image.len() < layout.total_len {
            let (expected, found) = (layout.total_len, image.len());
            return Err(Error::ImageTruncated { expected, found });
        }
        let places = header.tensors.iter().zip(&layout.ranges).map(|(tensor, place)| {
            let size = size_in_image(tensor).unwrap_or(place.len());
            (tensor.name.as_str(), (tensor, place.start..place.start + size))
        });
        let views = Views { tensors: HashMap::from_iter(places), image };
        let weights = views.weights(&layout.config)?;
        let weights_len = layout.total_len - layout.header_len;
        Ok(Self { config: layout.config, weights, weights_len, header })
    }

    /// Returns the header, for tokenizer and template.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the hyperparameters.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns the bytes of all packed weights.
    pub fn weights_len(&self) -> usize {
        self.weights_len
    }
}
