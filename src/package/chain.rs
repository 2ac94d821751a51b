//! Certificate chains of model signers: RFC 5280, at the time of the check.
//!
//! The reference tool checks a chain at the leaf's own begin of validity, so an expired
//! certificate signs for ever. Here the clock is the caller's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pki_types::{CertificateDer, UnixTime};
use webpki::ring::{
    ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA256, ECDSA_P384_SHA384,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::trust::{PublicKey, Root};
use super::{ChainFault, Error};

/// `id-kp-codeSigning`, 1.3.6.1.5.5.7.3.3.
const CODE_SIGNING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03];

/// Verifies that `chain` (DER, leaf first) ends at one of `roots` at the time `now`.
///
/// Returns the root and the leaf's key.
pub(super) fn verify<'r>(
    chain: &[Vec<u8>],
    roots: &'r [Root],
    now: SystemTime,
) -> Result<(&'r Root, PublicKey), Error> {
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO));
    let ders: Vec<CertificateDer<'_>> =
        chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let Some((leaf, intermediates)) = ders.split_first() else {
        return Err(Error::Chain(ChainFault::Malformed));
    };
    let leaf = EndEntityCert::try_from(leaf).map_err(|_| Error::Chain(ChainFault::Malformed))?;
    let key = PublicKey::from_spki(&leaf.subject_public_key_info())
        .ok_or(Error::CurveUnsupported { curve: "the certificate's" })?;
    let mut fault = ChainFault::UnknownIssuer;
    for root in roots {
        let anchors = [anchor_from_trusted_cert(&root.certificate)
            .map_err(|_| Error::Chain(ChainFault::Malformed))?];
        let verdict = leaf.verify_for_usage(
            &[
                ECDSA_P256_SHA256,
                ECDSA_P256_SHA384,
                ECDSA_P384_SHA256,
                ECDSA_P384_SHA384,
                RSA_PKCS1_2048_8192_SHA256,
                RSA_PKCS1_2048_8192_SHA384,
                RSA_PKCS1_2048_8192_SHA512,
            ],
            &anchors,
            intermediates,
            now,
            KeyUsage::required(CODE_SIGNING),
            None,
            None,
        );
        match verdict {
            Ok(_) => return Ok((root, key)),
            Err(webpki::Error::UnknownIssuer) => {}
            Err(error) => fault = chain_fault(&error),
        }
    }
    Err(Error::Chain(fault))
}

fn chain_fault(error: &webpki::Error) -> ChainFault {
    match error {
        webpki::Error::CertExpired { .. } => ChainFault::Expired,
        webpki::Error::CertNotValidYet { .. } => ChainFault::NotYetValid,
        webpki::Error::RequiredEkuNotFoundContext(_) => ChainFault::Usage,
        webpki::Error::BadDer | webpki::Error::BadDerTime => ChainFault::Malformed,
        _ => ChainFault::Invalid,
    }
}
