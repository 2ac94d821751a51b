//! Signing TLS handshakes for the gateway: only what a server must sign, never anything else.
//!
//! A compromised gateway may ask for any signature; the form check leaves it nothing but TLS 1.3
//! `CertificateVerify` of a server (RFC 8446, 4.4.3), so the key cannot be made to sign a certificate or
//! another protocol's text. What a server signs in TLS 1.2 begins with 64 bytes of the asker's choice.

use std::fmt;

use pki_types::pem::PemObject as _;
use pki_types::{CertificateDer, PrivateKeyDer};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

use crate::ipc::message::{CERTIFICATE_LEN_MAX_BYTES, CERTIFICATES_COUNT_MAX};
use crate::secret::Secret;

/// TLS `SignatureScheme` `ecdsa_secp256r1_sha256`.
pub(super) const ECDSA_P256_SHA256: u16 = 0x0403;
/// What precedes the transcript hash of a TLS 1.3 server's `CertificateVerify`.
const CONTEXT_TLS13: &[u8] = b"TLS 1.3, server CertificateVerify\0";
/// Spaces before that context.
const PAD_LEN: usize = 64;

/// Why the TLS key or certificate is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Error {
    /// The key is not a P-256 key in PKCS#8 PEM.
    Key,
    /// The certificate file holds no certificate, or something else.
    Certificate,
    /// The chain is longer than a handshake should show.
    TooLong,
    /// The certificate is not of this key.
    Mismatch,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key => write!(f, "not a P-256 private key in PKCS#8 PEM"),
            Self::Certificate => write!(f, "not a chain of certificates in PEM"),
            Self::TooLong => write!(
                f,
                "more than {CERTIFICATES_COUNT_MAX} certificates, or one over \
                 {CERTIFICATE_LEN_MAX_BYTES} bytes; leave out the root and what is not of the chain"
            ),
            Self::Mismatch => write!(f, "the certificate is not of this key"),
        }
    }
}

impl std::error::Error for Error {}

/// The TLS key.
pub(super) struct TlsKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl TlsKey {
    /// Reads a key and the chain of its certificate, leaf first.
    pub(super) fn read(key: &Secret, chain_pem: &[u8]) -> Result<(Self, Vec<Vec<u8>>), Error> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain_pem).collect();
        let chain = chain.map_err(|_| Error::Certificate)?;
        let is_long = chain.iter().any(|one| one.as_ref().len() > CERTIFICATE_LEN_MAX_BYTES);
        if is_long || chain.len() > CERTIFICATES_COUNT_MAX {
            return Err(Error::TooLong);
        }
        let leaf = chain.first().ok_or(Error::Certificate)?;
        let der = PrivateKeyDer::from_pem_slice(key.expose()).map_err(|_| Error::Key)?;
        let PrivateKeyDer::Pkcs8(der) = der else { return Err(Error::Key) };
        let random = SystemRandom::new();
        let kind = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pair = EcdsaKeyPair::from_pkcs8(kind, der.secret_pkcs8_der(), &random);
        let pair = pair.map_err(|_| Error::Key)?;
        // A certificate of this key holds the key's uncompressed point.
        let point = pair.public_key().as_ref();
        if !leaf.as_ref().windows(point.len()).any(|window| window == point) {
            return Err(Error::Mismatch);
        }
        Ok((Self { pair, random }, chain.iter().map(|one| one.as_ref().to_vec()).collect()))
    }

    /// Signs a handshake message of the right form; `None` for any other.
    pub(super) fn sign(&self, scheme: u16, message: &[u8]) -> Option<Vec<u8>> {
        if scheme != ECDSA_P256_SHA256 || !is_certificate_verify(message) {
            return None;
        }
        self.pair.sign(&self.random, message).ok().map(|signature| signature.as_ref().to_vec())
    }
}

/// 64 spaces, the server's context, a SHA-256 or SHA-384 transcript hash.
fn is_certificate_verify(message: &[u8]) -> bool {
    let Some((pad, rest)) = message.split_at_checked(PAD_LEN) else { return false };
    let Some(hash) = rest.strip_prefix(CONTEXT_TLS13) else { return false };
    pad.iter().all(|&byte| byte == b' ') && matches!(hash.len(), 32 | 48)
}

#[cfg(test)]
mod tests {
    use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};

    use super::*;

    fn certificate_verify(hash_len: usize) -> Vec<u8> {
        [&[b' '; PAD_LEN][..], CONTEXT_TLS13, &vec![7; hash_len]].concat()
    }

    /// What a server signs in TLS 1.2: both randoms, the curve P-384, a point.
    fn server_key_exchange() -> Vec<u8> {
        [&[9; 64][..], &[3, 0, 0x18, 97], &[4; 97]].concat()
    }

    /// A request for a certificate, for a name of the asker's choice and the key of TLS, in that very form.
    fn certificate_request(point: &[u8]) -> Vec<u8> {
        let mut name = [b'.'; 53];
        name[..16].copy_from_slice(b"hospital.example");
        // The common name begins at 19.
        name[64 - 19..68 - 19].copy_from_slice(&[3, 0, 0x18, 97]);
        let subject =
            [&[0x30, 64, 0x31, 62, 0x30, 60, 6, 3, 0x55, 4, 3, 12, 53][..], &name].concat();
        let key = [
            &[0x30, 89, 0x30, 19, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1][..],
            &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7, 3, 66, 0],
            point,
        ];
        [&[0x30, 0x81, 162, 2, 1, 0][..], &subject, &key.concat(), &[0xa0, 0]].concat()
    }

    fn key() -> (TlsKey, Vec<u8>, Vec<u8>) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let key = Secret::new(made.signing_key.serialize_pem().into_bytes());
        let (key, chain) = TlsKey::read(&key, made.cert.pem().as_bytes()).unwrap();
        assert_eq!(chain, [made.cert.der().to_vec()]);
        let public = key.pair.public_key().as_ref().to_vec();
        (key, public, made.cert.pem().into_bytes())
    }

    #[test]
    fn signs_what_a_tls_server_signs() {
        let (key, public, _) = key();
        for message in [certificate_verify(32), certificate_verify(48)] {
            let signature = key.sign(ECDSA_P256_SHA256, &message).unwrap();
            let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &public);
            public.verify(&message, &signature).unwrap();
            assert!(key.sign(0x0804, &message).is_none());
        }
    }

    #[test]
    fn signs_nothing_else() {
        let mut client = certificate_verify(32);
        client[PAD_LEN + 9..PAD_LEN + 15].copy_from_slice(b"client");
        let mut short_pad = certificate_verify(32);
        short_pad.remove(0);
        let mut not_spaces = certificate_verify(32);
        not_spaces[63] = 0;
        let (key, point, _) = key();
        let refused = [
            Vec::new(),
            b"-----BEGIN CERTIFICATE REQUEST-----".to_vec(),
            vec![b' '; 200],
            certificate_verify(0),
            certificate_verify(31),
            certificate_verify(33),
            certificate_verify(64),
            client,
            short_pad,
            not_spaces,
            server_key_exchange(),
            certificate_request(&point),
        ];
        for (i, message) in refused.iter().enumerate() {
            assert!(key.sign(ECDSA_P256_SHA256, message).is_none(), "message {i}");
        }
    }

    #[test]
    fn a_request_for_a_certificate_can_have_the_form_of_a_key_exchange() {
        use x509_parser::certification_request::X509CertificationRequestInfo;
        use x509_parser::prelude::FromDer as _;

        let (_, point, _) = key();
        let (request, exchange) = (certificate_request(&point), server_key_exchange());
        assert_eq!((request.len(), &request[64..68]), (exchange.len(), &exchange[64..68]));
        let (rest, info) = X509CertificationRequestInfo::from_der(&request).unwrap();
        assert!(rest.is_empty() && info.subject.to_string().contains("hospital.example"));
        assert!(info.subject_pki.raw.ends_with(&point));
    }

    #[test]
    fn a_certificate_of_another_key_is_refused() {
        let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let other = Secret::new(other.signing_key.serialize_pem().into_bytes());
        let (.., chain) = key();
        assert_eq!(TlsKey::read(&other, &chain).err(), Some(Error::Mismatch));
        assert_eq!(TlsKey::read(&other, b"").err(), Some(Error::Certificate));
        assert_eq!(TlsKey::read(&Secret::new(chain.clone()), &chain).err(), Some(Error::Key));
    }
}
