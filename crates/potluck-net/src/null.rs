//! QUIC whose packets are not encrypted: what encryption costs is measured against it, and what it hides is seen in it. Exists with the
//! feature `undefended` alone, which no program has.

use std::sync::Arc;

use rustls::{
    CipherSuite, Error, SupportedCipherSuite, Tls13CipherSuite,
    crypto::{
        CipherSuiteCommon, CryptoProvider,
        cipher::{AeadKey, Iv},
        ring,
    },
    quic::{Algorithm, HeaderProtectionKey, PacketKey, Tag},
};

/// Bytes behind each packet, where a tag would be.
const TAG: [u8; 16] = [0; 16];

/// Ring's provider, with a handshake as it is and packets as they are.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = provider
        .cipher_suites
        .into_iter()
        .filter_map(|suite| match suite {
            SupportedCipherSuite::Tls13(suite) if suite.common.suite == CipherSuite::TLS13_AES_128_GCM_SHA256 => {
                Some(plain(suite))
            }
            _ => None,
        })
        .collect();
    Arc::new(provider)
}

fn plain(suite: &'static Tls13CipherSuite) -> SupportedCipherSuite {
    let common = CipherSuiteCommon {
        suite: suite.common.suite,
        hash_provider: suite.common.hash_provider,
        confidentiality_limit: suite.common.confidentiality_limit,
    };
    let (hkdf_provider, aead_alg) = (suite.hkdf_provider, suite.aead_alg);
    // One for each endpoint of a measurement.
    SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
        common,
        hkdf_provider,
        aead_alg,
        quic: Some(&Plain),
    })))
}

struct Plain;

impl Algorithm for Plain {
    fn packet_key(&self, _: AeadKey, _: Iv) -> Box<dyn PacketKey> {
        Box::new(Self)
    }

    fn header_protection_key(&self, _: AeadKey) -> Box<dyn HeaderProtectionKey> {
        Box::new(Self)
    }

    fn aead_key_len(&self) -> usize {
        16
    }
}

impl HeaderProtectionKey for Plain {
    fn encrypt_in_place(&self, _: &[u8], _: &mut u8, _: &mut [u8]) -> Result<(), Error> {
        Ok(())
    }

    fn decrypt_in_place(&self, _: &[u8], _: &mut u8, _: &mut [u8]) -> Result<(), Error> {
        Ok(())
    }

    fn sample_len(&self) -> usize {
        TAG.len()
    }
}

impl PacketKey for Plain {
    fn encrypt_in_place(&self, _: u64, _: &[u8], _: &mut [u8]) -> Result<Tag, Error> {
        Ok(Tag::from(&TAG[..]))
    }

    fn encrypt_in_place_for_path(&self, _: u32, _: u64, _: &[u8], _: &mut [u8]) -> Result<Tag, Error> {
        Ok(Tag::from(&TAG[..]))
    }

    fn decrypt_in_place<'a>(&self, _: u64, _: &[u8], payload: &'a mut [u8]) -> Result<&'a [u8], Error> {
        let len = payload.len().checked_sub(TAG.len()).ok_or(Error::DecryptError)?;
        Ok(&payload[..len])
    }

    fn decrypt_in_place_for_path<'a>(
        &self,
        _: u32,
        number: u64,
        header: &[u8],
        payload: &'a mut [u8],
    ) -> Result<&'a [u8], Error> {
        PacketKey::decrypt_in_place(self, number, header, payload)
    }

    fn tag_len(&self) -> usize {
        TAG.len()
    }

    fn confidentiality_limit(&self) -> u64 {
        u64::MAX
    }

    fn integrity_limit(&self) -> u64 {
        u64::MAX
    }
}
