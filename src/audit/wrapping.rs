//! The key that the principals' keys are wrapped under: once it is replaced and gone, every older
//! copy of them is useless.
//!
//! Wrapped keys are AES-256-GCM under a fresh nonce; what they belong to is authenticated with them.
//! The wrapping key's file is one line of text; no wrapped key ever leaves in plain.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{Context, SHA256};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use super::Error;
use super::principal_keys::hex;
use crate::secret::Secret;

/// What a wrapping key's file starts with.
const FILE_PREFIX: &str = "CLOISTER-WRAPPING-KEY-1:";
/// Bytes of a wrapping key.
const KEY_LEN: usize = 32;
/// Bytes of its name.
const ID_LEN: usize = 8;

/// A wrapping key.
pub struct WrappingKey {
    id: String,
    key: LessSafeKey,
}

impl std::fmt::Debug for WrappingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WrappingKey({})", self.id)
    }
}

impl WrappingKey {
    /// The text of a fresh key's file.
    ///
    /// # Errors
    ///
    /// [`Error::Random`].
    pub fn generate() -> Result<Secret, Error> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        SystemRandom::new().fill(key.as_mut_slice()).map_err(|_| Error::Random)?;
        let mut text = String::with_capacity(FILE_PREFIX.len() + KEY_LEN * 2);
        text.push_str(FILE_PREFIX);
        STANDARD.encode_string(key.as_slice(), &mut text);
        text.push('\n');
        Ok(Secret::new(text.into_bytes()))
    }

    /// Reads the text of a key's file.
    ///
    /// # Errors
    ///
    /// [`Error::WrappingKeyMalformed`] for any other text.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let text = std::str::from_utf8(text).ok();
        let base64 = text.and_then(|text| text.trim_end().strip_prefix(FILE_PREFIX));
        let mut key = Zeroizing::new([0; KEY_LEN]);
        // A slice that is too long for the key is refused too.
        let decoded = base64.and_then(|text| STANDARD.decode_slice(text, key.as_mut_slice()).ok());
        if decoded != Some(KEY_LEN) {
            return Err(Error::WrappingKeyMalformed);
        }
        let mut context = Context::new(&SHA256);
        context.update(FILE_PREFIX.as_bytes());
        context.update(key.as_slice());
        let id = hex(&context.finish().as_ref()[..ID_LEN]);
        let key = UnboundKey::new(&AES_256_GCM, key.as_slice());
        let key = key.map_err(|_| Error::WrappingKeyMalformed)?;
        Ok(Self { id, key: LessSafeKey::new(key) })
    }

    /// Its name: the first bytes of a digest of it, in hex.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Wraps `secret`, which belongs to `owner`: nonce, ciphertext, tag.
    pub(super) fn wrap(&self, owner: &str, secret: &[u8]) -> Result<Vec<u8>, Error> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| Error::Random)?;
        // Encrypted in place: the buffer has its room from the start, so no copy stays behind.
        let mut sealed = Vec::with_capacity(secret.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(secret);
        let owner = Aad::from(owner.as_bytes());
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), owner, &mut sealed)
            .map_err(|_| Error::Random)?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Unwraps what [`WrappingKey::wrap`] made for `owner`; `None` for anything else.
    pub(super) fn unwrap(&self, owner: &str, wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, sealed) = wrapped.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut buffer = Zeroizing::new(sealed.to_vec());
        let owner = Aad::from(owner.as_bytes());
        let len = self.key.open_in_place(nonce, owner, &mut buffer).ok()?.len();
        buffer.truncate(len);
        Some(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> WrappingKey {
        WrappingKey::parse(WrappingKey::generate().unwrap().expose()).unwrap()
    }

    #[test]
    fn what_was_wrapped_is_unwrapped_by_the_same_key_for_the_same_owner_alone() {
        let (key, other) = (key(), key());
        assert_ne!(key.id(), other.id());
        let wrapped = key.wrap("a", b"secret").unwrap();
        assert_ne!(wrapped, key.wrap("a", b"secret").unwrap());
        assert_eq!(key.unwrap("a", &wrapped).unwrap().as_slice(), b"secret");
        assert!(other.unwrap("a", &wrapped).is_none());
        assert!(key.unwrap("b", &wrapped).is_none());
        for at in 0..wrapped.len() {
            let mut changed = wrapped.clone();
            changed[at] ^= 1;
            assert!(key.unwrap("a", &changed).is_none(), "byte {at}");
            assert!(key.unwrap("a", &wrapped[..at]).is_none(), "{at} bytes");
        }
    }

    #[test]
    fn only_a_key_is_a_key() {
        let good = WrappingKey::generate().unwrap();
        let good = std::str::from_utf8(good.expose()).unwrap();
        assert!(WrappingKey::parse(good.trim_end().as_bytes()).is_ok());
        let long = format!("{FILE_PREFIX}{}", STANDARD.encode([0; KEY_LEN + 1]));
        for bad in ["", FILE_PREFIX, &good[1..], &good[..good.len() - 3], &long] {
            let parsed = WrappingKey::parse(bad.as_bytes());
            assert!(matches!(parsed, Err(Error::WrappingKeyMalformed)), "{bad:?}");
        }
    }
}
