//! What one rendering may use up, counted where the template engine itself does not count.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::error::Limit;

/// Most elements of a list that an operator or a filter takes.
const LIST_LEN_MAX: usize = 1 << 16;
/// Most values looked at to measure one value.
const VALUES_MAX: usize = 1 << 17;
/// Deepest nesting of a value: the engine itself frees nested values by recursion.
const DEPTH_MAX: usize = 100;
/// Longest string that is multiplied, in bytes.
const FACTOR_LEN_MAX_BYTES: usize = 1024;

/// The limits of one rendering and what is left of them.
pub(super) struct Budget {
    value_len_max: usize,
    output_left: AtomicUsize,
    copies_left: AtomicUsize,
    exceeded: AtomicU8,
}

const RAISED: u8 = u8::MAX;

impl Budget {
    /// Starts with what a rendering may write and copy, in bytes.
    pub(super) fn new(output_len_max: usize, copies_max: usize) -> Self {
        Self {
            value_len_max: output_len_max,
            output_left: output_len_max.into(),
            copies_left: copies_max.into(),
            exceeded: 0.into(),
        }
    }

    /// Notes which limit was passed, and makes the error that ends the rendering.
    pub(super) fn exceed(&self, limit: Limit) -> Error {
        let code = match limit {
            Limit::TemplateLen => 1,
            Limit::Fuel => 2,
            Limit::OutputLen => 3,
            Limit::ValueLen => 4,
            Limit::Copies => 5,
            Limit::Depth => 6,
        };
        self.exceeded.store(code, Relaxed);
        Error::new(ErrorKind::InvalidOperation, "limit")
    }

    /// Notes that the template refused the messages.
    pub(super) fn raise(&self) -> Error {
        self.exceeded.store(RAISED, Relaxed);
        Error::new(ErrorKind::InvalidOperation, "raised")
    }

    /// Returns whether the template refused the messages.
    pub(super) fn raised(&self) -> bool {
        self.exceeded.load(Relaxed) == RAISED
    }

    /// Returns the limit that was passed.
    pub(super) fn exceeded(&self) -> Option<Limit> {
        match self.exceeded.load(Relaxed) {
            1 => Some(Limit::TemplateLen),
            2 => Some(Limit::Fuel),
            3 => Some(Limit::OutputLen),
            4 => Some(Limit::ValueLen),
            5 => Some(Limit::Copies),
            6 => Some(Limit::Depth),
            _ => None,
        }
    }

    /// Takes `len` bytes of output.
    pub(super) fn write(&self, len: usize) -> Result<(), Error> {
        take(&self.output_left, len).ok_or_else(|| self.exceed(Limit::OutputLen))
    }

    /// Takes a copy of `len` bytes, which must also be a value's length.
    pub(super) fn copy(&self, len: usize) -> Result<(), Error> {
        if len > self.value_len_max {
            return Err(self.exceed(Limit::ValueLen));
        }
        take(&self.copies_left, len).ok_or_else(|| self.exceed(Limit::Copies))
    }

    /// Takes a list of `len` elements.
    pub(super) fn list(&self, len: Option<usize>) -> Result<(), Error> {
        match len {
            Some(len) if len <= LIST_LEN_MAX => self.copy(len),
            _ => Err(self.exceed(Limit::ValueLen)),
        }
    }

    /// Takes a copy of a value as text.
    pub(super) fn value(&self, value: &Value) -> Result<(), Error> {
        if let Some(text) = value.as_str() {
            return self.copy(text.len());
        }
        if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
            self.list(value.len())?;
        }
        let mut values = VALUES_MAX;
        let len = self.text_len(value, &mut values)?;
        self.copy(len + (VALUES_MAX - values))
    }

    /// Takes an operand of `*`.
    pub(super) fn factor(&self, value: &Value) -> Result<(), Error> {
        let short = value.as_str().is_none_or(|text| text.len() <= FACTOR_LEN_MAX_BYTES);
        if short && value.len().is_none_or(|_| value.as_str().is_some()) {
            Ok(())
        } else {
            Err(self.exceed(Limit::ValueLen))
        }
    }

    /// Measures a value of at most `values` values.
    fn text_len(&self, value: &Value, values: &mut usize) -> Result<usize, Error> {
        let mut pending = vec![(value.clone(), 0)];
        let mut len = 0usize;
        while let Some((value, depth)) = pending.pop() {
            *values = values.checked_sub(1).ok_or_else(|| self.exceed(Limit::ValueLen))?;
            if let Some(text) = value.as_str() {
                len = len.saturating_add(text.len());
                continue;
            }
            let Ok(items) = value.try_iter() else { continue };
            if depth == DEPTH_MAX {
                return Err(self.exceed(Limit::Depth));
            }
            for item in items {
                if pending.len() > *values {
                    return Err(self.exceed(Limit::ValueLen));
                }
                if value.kind() == ValueKind::Map
                    && let Ok(entry) = value.get_item(&item)
                {
                    pending.push((entry, depth + 1));
                }
                pending.push((item, depth + 1));
            }
        }
        Ok(len)
    }
}

fn take(left: &AtomicUsize, amount: usize) -> Option<()> {
    left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(amount)).ok().map(drop)
}
