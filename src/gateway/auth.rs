//! A presented API key becomes its digest; whose it is, the supervisor alone knows.

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

use super::error::ApiError;
use crate::ipc::message::Digest;

/// Longest API key, in bytes.
const KEY_LEN_MAX_BYTES: usize = 512;

/// Takes the key of `Authorization: Bearer KEY`.
///
/// # Errors
///
/// `KeyMissing` without exactly one such header of the right form.
pub(super) fn presented_key(headers: &HeaderMap) -> Result<Digest, ApiError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(ApiError::KeyMissing);
    };
    let (scheme, key) =
        value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or(ApiError::KeyMissing)?;
    let key = key.trim_matches(' ');
    let is_key = !key.is_empty()
        && key.len() <= KEY_LEN_MAX_BYTES
        && key.bytes().all(|byte| byte.is_ascii_graphic());
    if !scheme.eq_ignore_ascii_case("bearer") || !is_key {
        return Err(ApiError::KeyMissing);
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    Ok(Digest(bytes))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn digest_of(values: &[&str]) -> Option<Digest> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        presented_key(&headers).ok()
    }

    #[test]
    fn takes_one_bearer_key() {
        // SHA-256 of "abc", from FIPS 180-2.
        let abc = [
            0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae,
            0x22, 0x23, 0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61,
            0xf2, 0x00, 0x15, 0xad,
        ];
        for header in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            assert_eq!(digest_of(&[header]), Some(Digest(abc)), "{header}");
        }
    }

    #[test]
    fn refuses_every_other_form() {
        let long = format!("Bearer {}", "k".repeat(KEY_LEN_MAX_BYTES + 1));
        for header in ["", "abc", "Bearer", "Bearer ", "Basic abc", "Bearer a b", &long] {
            assert_eq!(digest_of(&[header]), None, "{header}");
        }
        assert_eq!(digest_of(&[]), None);
        assert_eq!(digest_of(&["Bearer abc", "Bearer abc"]), None);
    }
}
