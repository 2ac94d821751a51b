//! TLS without the key: rustls builds what is to be signed, the supervisor signs it.
//!
//! TLS 1.3 alone: what a server signs in TLS 1.2 is so free in form that it can be another protocol's text.
//! HTTP/1.1 by ALPN, no early data, no resumption: no secret of a session outlives its connection.

use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{ServerConfig, SignatureAlgorithm, SignatureScheme};
use tokio_rustls::TlsAcceptor;

use super::control::Control;
use super::error::Error;

/// Accepts handshakes with a certificate chain whose key the supervisor holds.
pub(super) fn acceptor(
    certificates: &[Vec<u8>],
    scheme: u16,
    control: &Arc<Control>,
) -> Result<TlsAcceptor, Error> {
    if certificates.is_empty() {
        return Err(Error::Tls("a TLS listener without a certificate"));
    }
    let scheme = SignatureScheme::from(scheme);
    let algorithm = algorithm_of(scheme).ok_or(Error::Tls("an unknown signature scheme"))?;
    let chain = certificates.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = Arc::new(RemoteKey { scheme, algorithm, control: Arc::clone(control) });
    let resolver = SingleCertAndKey::from(CertifiedKey::new(chain, key));
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|_| Error::Tls("no cipher suite for TLS 1.3"))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn algorithm_of(scheme: SignatureScheme) -> Option<SignatureAlgorithm> {
    match scheme {
        SignatureScheme::ECDSA_NISTP256_SHA256 | SignatureScheme::ECDSA_NISTP384_SHA384 => {
            Some(SignatureAlgorithm::ECDSA)
        }
        SignatureScheme::ED25519 => Some(SignatureAlgorithm::ED25519),
        SignatureScheme::RSA_PSS_SHA256
        | SignatureScheme::RSA_PSS_SHA384
        | SignatureScheme::RSA_PSS_SHA512 => Some(SignatureAlgorithm::RSA),
        _ => None,
    }
}

/// The supervisor's key, as far as the gateway can use it.
#[derive(Debug)]
struct RemoteKey {
    scheme: SignatureScheme,
    algorithm: SignatureAlgorithm,
    control: Arc<Control>,
}

impl SigningKey for RemoteKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let signer = RemoteSigner { scheme: self.scheme, control: Arc::clone(&self.control) };
        offered.contains(&self.scheme).then(|| Box::new(signer) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }
}

#[derive(Debug)]
struct RemoteSigner {
    scheme: SignatureScheme,
    control: Arc<Control>,
}

impl Signer for RemoteSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.control
            .sign(u16::from(self.scheme), message)
            .map_err(|_| rustls::Error::General("no signature".to_owned()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}
