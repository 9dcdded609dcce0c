//! By what clients know a relay: a certificate of its own making, one from files, or one that ACME fetches.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use iroh_relay::{
    server::{AcmeConfig, CertConfig},
    tls::CaTlsConfig,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::RelayError;

/// By what clients know a relay.
#[derive(Debug)]
pub enum Certificate {
    /// A chain and its key. Clients that do not know who signed it know it by its [`fingerprint`](Self::fingerprint).
    Own {
        /// The relay's own certificate first.
        chain: Vec<CertificateDer<'static>>,
        /// The first one's key.
        key: PrivateKeyDer<'static>,
    },
    /// From an authority that everybody knows, renewed as needed, proven over port 443 (TLS-ALPN-01).
    Acme(Acme),
}

/// How to ask an authority for a certificate (RFC 8555).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    /// The names that the certificate is for.
    pub domains: Vec<String>,
    /// Whom the authority writes to: an e-mail address.
    pub contact: Option<String>,
    /// The authority's directory; none: Let's Encrypt.
    pub directory: Option<String>,
    /// Where the account and the certificates are kept.
    pub folder: PathBuf,
}

impl Certificate {
    /// The certificate that is kept in that folder; made there, with its key, where there is none yet for just these names.
    ///
    /// # Errors
    /// `Certificate`, with what went wrong and where.
    pub fn self_signed(folder: &Path, names: &[String]) -> Result<Self, RelayError> {
        let (chain_at, key_at) = (folder.join("relay.crt"), folder.join("relay.key"));
        let names_at = folder.join("relay.names");
        let wanted = names.join("\n") + "\n";
        if fs::read_to_string(&names_at).is_ok_and(|kept| kept == wanted) && chain_at.exists() && key_at.exists() {
            return Self::from_files(&chain_at, &key_at);
        }
        let failed = |error: &dyn std::error::Error| RelayError::Certificate(error.to_string());
        let made = rcgen::generate_simple_self_signed(names).map_err(|error| failed(&error))?;
        write_private(&key_at, made.signing_key.serialize_pem().as_bytes())?;
        write_private(&chain_at, made.cert.pem().as_bytes())?;
        // Last: whoever was interrupted before makes both anew.
        write_private(&names_at, wanted.as_bytes())?;
        Self::from_files(&chain_at, &key_at)
    }

    /// A chain and its key from PEM files.
    ///
    /// # Errors
    /// `Certificate`, with what is wrong with which file.
    pub fn from_files(chain: &Path, key: &Path) -> Result<Self, RelayError> {
        let bad =
            |at: &Path, error: &dyn std::fmt::Display| RelayError::Certificate(format!("{}: {error}", at.display()));
        let certificates = CertificateDer::pem_file_iter(chain).map_err(|error| bad(chain, &error))?;
        let certificates: Result<Vec<_>, _> = certificates.collect();
        let certificates = certificates.map_err(|error| bad(chain, &error))?;
        if certificates.is_empty() {
            return Err(bad(chain, &"no certificate in it"));
        }
        let key = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key, &error))?;
        Ok(Self::Own { chain: certificates, key })
    }

    /// The certificate itself, in DER, whose hash clients may be told; none where an authority that they know signs it.
    pub fn der(&self) -> Option<&[u8]> {
        match self {
            Self::Own { chain, .. } => chain.first().map(AsRef::as_ref),
            Self::Acme(_) => None,
        }
    }

    /// In the form that the relay's library takes.
    pub(crate) fn into_config(self) -> Result<CertConfig, RelayError> {
        let failed = |error: rustls::Error| RelayError::Certificate(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().map_err(failed)?.with_no_client_auth();
        Ok(match self {
            Self::Own { chain, key } => {
                CertConfig::Manual { server_config: builder.with_single_cert(chain, key).map_err(failed)? }
            }
            Self::Acme(Acme { domains, contact, directory, folder }) => {
                // A company's authority is known to its machines, and to nobody else.
                let acme = directory.map_or_else(
                    || AcmeConfig::letsencrypt(true),
                    |directory| AcmeConfig::new(directory).tls_config(CaTlsConfig::system()),
                );
                let contact = contact.map(|address| format!("mailto:{address}")).into_iter().collect();
                let acme = acme.domains(domains).contact(contact).cache_path(folder);
                CertConfig::LetsEncrypt { acme_config: acme, server_config_builder: builder }
            }
        })
    }
}

/// Readable by its owner only, as a whole or not at all.
fn write_private(at: &Path, bytes: &[u8]) -> Result<(), RelayError> {
    let write = || {
        let folder = at.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(at).map_err(|error| error.error).map(drop)
    };
    write().map_err(|error| RelayError::Certificate(format!("{}: {error}", at.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_once_is_kept_until_the_names_change() {
        let folder = tempfile::tempdir().unwrap();
        let der = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
            Certificate::self_signed(folder.path(), &names).unwrap().der().unwrap().to_vec()
        };
        let first = der(&["relay.test", "10.0.0.1"]);
        assert_eq!(der(&["relay.test", "10.0.0.1"]), first);
        assert_ne!(der(&["relay.test"]), first);
        assert!(Certificate::from_files(&folder.path().join("relay.key"), &folder.path().join("relay.key")).is_err());
        assert!(Certificate::from_files(&folder.path().join("none"), &folder.path().join("relay.key")).is_err());
    }
}
