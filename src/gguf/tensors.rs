//! The tensor table: names, shapes, types and places, each checked.

use kernels::TensorType;

use super::reader::Reader;
use super::{DIM_COUNT_MAX, Error, Field, Name, TENSOR_NAME_LEN_MAX};

/// Fewest bytes of a tensor's row in the table: name length, one letter, number of dimensions, one
/// dimension, type, offset.
pub(super) const INFO_SIZE_MIN: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// What the file says about one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its format.
    pub ty: TensorType,
    /// Its dimensions in GGUF's order: the first is the length of a row. None is zero.
    pub shape: Vec<u64>,
    /// Where its bytes start, from the start of the tensor data.
    pub offset: u64,
    /// How many bytes it has.
    pub size: u64,
}

impl TensorInfo {
    /// Returns the length of a row, in weights.
    pub fn cols(&self) -> u64 {
        self.shape[0]
    }

    /// Returns the number of rows: the product of all dimensions but the first.
    pub fn rows(&self) -> u64 {
        self.shape[1..].iter().product()
    }

    /// Returns the number of weights.
    pub fn len(&self) -> u64 {
        self.cols() * self.rows()
    }

    /// Returns whether there is no weight; never so for a tensor of a parsed file.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads the table of `count` tensors.
pub(super) fn read(reader: &mut Reader, count: usize) -> Result<Vec<TensorInfo>, Error> {
    let mut tensors = Vec::with_capacity(count);
    for index in 0..count {
        tensors.push(read_info(reader, index as u64)?);
    }
    Ok(tensors)
}

/// Returns the indices of the tensors ordered by name; refuses two of the same name.
pub(super) fn order_by_name(tensors: &[TensorInfo]) -> Result<Vec<u32>, Error> {
    let name_of = |index: u32| tensors[index as usize].name.as_str();
    let mut by_name: Vec<u32> = (0..).take(tensors.len()).collect();
    by_name.sort_by_key(|&index| name_of(index));
    match by_name.windows(2).find(|pair| name_of(pair[0]) == name_of(pair[1])) {
        Some(pair) => Err(Error::DuplicateTensor { tensor: Name::new(name_of(pair[0])) }),
        None => Ok(by_name),
    }
}

fn read_info(reader: &mut Reader, index: u64) -> Result<TensorInfo, Error> {
    let name = reader.string(TENSOR_NAME_LEN_MAX, || Field::TensorName(index))?;
    if name.is_empty() {
        return Err(Error::Empty { field: Field::TensorName(index) });
    }
    let tensor = Name::new(name);
    let dim_count = reader.u32(Field::DimCount(tensor.clone()))?;
    if dim_count == 0 || dim_count > DIM_COUNT_MAX {
        return Err(Error::BadDimCount { tensor, count: dim_count });
    }
    let mut shape = Vec::with_capacity(dim_count as usize);
    for _ in 0..dim_count {
        shape.push(reader.u64(Field::Dims(tensor.clone()))?);
    }
    let id = reader.u32(Field::TensorType(tensor.clone()))?;
    let offset = reader.u64(Field::Offset(tensor.clone()))?;
    if shape.contains(&0) {
        return Err(Error::ZeroDim { tensor });
    }
    let Some(ty) = TensorType::from_id(id) else {
        return Err(match kernels::formats::unsupported_name(id) {
            Some(name) => Error::UnsupportedTensorType { tensor, id, name },
            None => Error::UnknownTensorType { tensor, id },
        });
    };
    let size = size_of(ty, &shape, &tensor)?;
    Ok(TensorInfo { name: name.to_owned(), ty, shape, offset, size })
}

/// Returns the size in bytes of a tensor of this type and shape.
fn size_of(ty: TensorType, shape: &[u64], tensor: &Name) -> Result<u64, Error> {
    let too_large = || Error::TensorTooLarge { tensor: tensor.clone() };
    let len = shape.iter().try_fold(1_u64, |len, &dim| len.checked_mul(dim));
    let len = len.filter(|&len| i64::try_from(len).is_ok()).ok_or_else(too_large)?;
    let block_len = ty.block_len();
    if !shape[0].is_multiple_of(block_len as u64) {
        return Err(Error::PartialBlock { tensor: tensor.clone(), cols: shape[0], block_len });
    }
    let size = (len / block_len as u64).checked_mul(ty.block_size() as u64);
    size.filter(|&size| i64::try_from(size).is_ok()).ok_or_else(too_large)
}

/// Checks that every tensor is aligned, ends within `data_len` bytes, and shares none with another.
///
/// Writers pad the last tensor too, or do not: the file ends with its last byte or after the whole
/// padding, and anywhere between means that it was cut.
pub(super) fn check_places(
    tensors: &[TensorInfo],
    alignment: u32,
    data_len: u64,
) -> Result<(), Error> {
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    let mut last: Option<(&TensorInfo, u64)> = None;
    for info in by_offset {
        let &TensorInfo { offset, size, .. } = info;
        let tensor = || Name::new(&info.name);
        if offset % u64::from(alignment) != 0 {
            return Err(Error::Misaligned { tensor: tensor(), offset, alignment });
        }
        let past_end = || Error::PastEnd { tensor: tensor(), offset, size, data_len };
        let end = offset.checked_add(size).ok_or_else(past_end)?;
        let padded = end.checked_next_multiple_of(u64::from(alignment)).ok_or_else(past_end)?;
        if end > data_len || (end < data_len && padded > data_len) {
            return Err(past_end());
        }
        if let Some((other, other_end)) = last
            && other_end > offset
        {
            return Err(Error::Overlap { tensor: tensor(), other: Name::new(&other.name) });
        }
        last = Some((info, end));
    }
    Ok(())
}
