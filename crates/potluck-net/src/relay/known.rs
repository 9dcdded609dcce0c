//! By what a relay's certificate is known: by its hash where one was told, else by who signed it.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use iroh::tls::CaTlsConfig;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::{RelayAt, at::fingerprint};

/// Names of which a hash is kept. The next one's is not, and then only an authority's word counts.
const NAMES_MAX: usize = 64;

/// Relays under one name, at several ports.
const OF_NAME_MAX: usize = 8;

/// The hashes that were told, by the relay's name. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known(Arc<RwLock<BTreeMap<String, Vec<[u8; 32]>>>>);

impl Known {
    /// Takes note of a relay's. Nobody replaces another's.
    pub(crate) fn note(&self, at: &RelayAt) {
        if let (Some(name), Some(pin)) = (at.name(), at.pin()) {
            let mut pins = self.0.write().unwrap_or_else(PoisonError::into_inner);
            if pins.len() < NAMES_MAX || pins.contains_key(&name) {
                let of_name = pins.entry(name).or_default();
                if of_name.len() < OF_NAME_MAX && !of_name.contains(&pin) {
                    of_name.push(pin);
                }
            }
        }
    }

    pub(super) fn pins(&self, name: &ServerName<'_>) -> Option<Vec<[u8; 32]>> {
        let name = match name {
            ServerName::IpAddress(ip) => IpAddr::from(*ip).to_string(),
            name => name.to_str().into_owned(),
        };
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&name).cloned()
    }

    /// How the endpoint checks relays' certificates.
    pub(crate) fn tls(&self) -> CaTlsConfig {
        let known = self.clone();
        CaTlsConfig::custom_server_cert_verifier(Arc::new(move |provider: Arc<CryptoProvider>| {
            // This system's own authorities, a company's among them; where it has none, Mozilla's.
            let authorities = CaTlsConfig::system().server_cert_verifier(provider.clone());
            let authorities =
                authorities.or_else(|_| CaTlsConfig::embedded().server_cert_verifier(provider.clone()))?;
            Ok::<_, io::Error>(Arc::new(Verifier { known: known.clone(), authorities, provider }) as _)
        }))
    }
}

#[derive(Debug)]
struct Verifier {
    known: Known,
    authorities: Arc<dyn ServerCertVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.known.pins(name) {
            Some(pins) if pins.contains(&fingerprint(certificate)) => Ok(ServerCertVerified::assertion()),
            Some(_) => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
            None => self.authorities.verify_server_cert(certificate, intermediates, name, ocsp, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
