//! Bytes that are erased on drop and cannot be printed, cloned or compared by `==`.
//!
//! Nothing here ever formats the bytes: `Debug` shows the length alone.

use std::fmt;

use zeroize::Zeroizing;

/// Secret bytes: a key, a token, a credential.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes `bytes`, which are erased when the secret is dropped.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Shows the bytes to the one operation that needs them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_byte() {
        let secret = Secret::new(b"hunter2".to_vec());
        assert_eq!(format!("{secret:?}"), "Secret(7 bytes)");
        assert_eq!(secret.expose(), b"hunter2");
    }
}
