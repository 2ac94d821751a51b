//! A builder of GGUF files, right ones and wrong ones.

/// The ids of value types.
pub(crate) const U8: u32 = 0;
pub(crate) const I8: u32 = 1;
pub(crate) const U32: u32 = 4;
pub(crate) const I32: u32 = 5;
pub(crate) const F32: u32 = 6;
pub(crate) const BOOL: u32 = 7;
pub(crate) const STRING: u32 = 8;
pub(crate) const ARRAY: u32 = 9;
pub(crate) const U64: u32 = 10;

/// A file in the making: fields are appended as they are given, counts stand for themselves.
pub(crate) struct File(Vec<u8>);

impl File {
    /// Starts a file of version 3 that announces these counts.
    pub(crate) fn new(tensor_count: u64, key_count: u64) -> Self {
        Self::of_version(3, tensor_count, key_count)
    }

    pub(crate) fn of_version(version: u32, tensor_count: u64, key_count: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(tensor_count).u64(key_count)
    }

    pub(crate) fn empty() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn magic(mut self, magic: [u8; 4]) -> Self {
        self.0[..4].copy_from_slice(&magic);
        self
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn text(self, text: &str) -> Self {
        self.u64(text.len() as u64).raw(text.as_bytes())
    }

    /// Appends a key and the type of its value.
    pub(crate) fn key(self, key: &str, ty: u32) -> Self {
        self.text(key).u32(ty)
    }

    /// Appends a key, and the element type and length of its array.
    pub(crate) fn array(self, key: &str, element: u32, len: u64) -> Self {
        self.key(key, ARRAY).u32(element).u64(len)
    }

    /// Appends a row of the tensor table.
    pub(crate) fn tensor(self, name: &str, shape: &[u64], ty: u32, offset: u64) -> Self {
        let file = self.text(name).u32(u32::try_from(shape.len()).unwrap());
        shape.iter().fold(file, |file, dim| file.u64(*dim)).u32(ty).u64(offset)
    }

    /// Appends zeros to a multiple of `alignment`, then `len` bytes of tensor data.
    pub(crate) fn data(mut self, alignment: usize, len: usize) -> Self {
        let start = self.0.len().next_multiple_of(alignment);
        self.0.resize(start + len, 0);
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0
    }
}
