//! Where a relay is, and by what it is known.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use iroh::{RelayConfig, RelayUrl};
use iroh_relay::RelayQuicConfig;
use potluck_core::Offer;
use sha2::{Digest as _, Sha256};

use crate::NetError;

/// Where a relay is, as it is written: `https://host[:port]`, or `http://host` where nobody is on the way. What passes through it is
/// encrypted from peer to peer in any case.
///
/// Behind a `#` stands what else there is to know, joined by `&`: `pin=` the SHA-256 hash of its certificate in base64url, where no
/// authority has signed that; `udp=` the port where it tells from where it sees whoever asks, if that is not 7842.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayAt {
    url: RelayUrl,
    pin: Option<[u8; 32]>,
    discovery: Option<u16>,
}

impl RelayAt {
    /// Reads one, which may come from anybody.
    ///
    /// # Errors
    /// `Relay` where the text is none.
    pub fn parse(text: &str) -> Result<Self, NetError> {
        Self::read(text)
            .filter(|at| at.to_string().len() <= Offer::RELAY_CHARS_MAX)
            .ok_or_else(|| NetError::Relay(text.chars().take(Offer::RELAY_CHARS_MAX).collect()))
    }

    fn read(text: &str) -> Option<Self> {
        if text.len() > Offer::RELAY_CHARS_MAX {
            return None;
        }
        let (url, about) = text.split_once('#').map_or((text, None), |(url, about)| (url, Some(about)));
        let url: RelayUrl = url.parse().ok()?;
        let usable = matches!(url.scheme(), "https" | "http")
            && url.has_host()
            && matches!(url.path(), "" | "/")
            && url.query().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        let mut at = Self { url: Some(url).filter(|_| usable)?, pin: None, discovery: None };
        for word in about.into_iter().flat_map(|about| about.split('&')) {
            match word.split_once('=')? {
                ("pin", pin) if at.pin.is_none() => {
                    at.pin = Some(BASE64URL_NOPAD.decode(pin.as_bytes()).ok()?.try_into().ok()?);
                }
                ("udp", port) if at.discovery.is_none() => {
                    at.discovery = Some(port.parse().ok().filter(|&port| port != 0)?)
                }
                _ => return None,
            }
        }
        // Without TLS there is nothing to know it by, and nothing to discover by.
        (at.url.scheme() == "https" || at.pin.is_none() && at.discovery.is_none()).then_some(at)
    }

    /// One at that URL with a certificate (DER) that no authority has signed.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn with_certificate(url: &str, certificate: Option<&[u8]>, discovery: Option<u16>) -> Result<Self, NetError> {
        let at = Self::parse(url)?;
        Self::parse(&Self { pin: certificate.map(fingerprint), discovery, ..at }.to_string())
    }

    /// Its URL.
    pub fn url(&self) -> &RelayUrl {
        &self.url
    }

    /// The hash of its certificate, where it is known by that.
    pub(super) fn pin(&self) -> Option<[u8; 32]> {
        self.pin
    }

    /// Its name, as a certificate is checked against it.
    pub(super) fn name(&self) -> Option<String> {
        self.url.host_str().map(|host| host.trim_start_matches('[').trim_end_matches(']').to_owned())
    }

    /// As the endpoint takes it. Without TLS there is no discovery.
    pub(super) fn config(&self, token: &str) -> RelayConfig {
        let quic = (self.url.scheme() == "https")
            .then(|| self.discovery.map_or_else(RelayQuicConfig::default, RelayQuicConfig::new));
        RelayConfig::new(self.url.clone(), quic).with_auth_token(token)
    }
}

/// The SHA-256 hash of a certificate in DER.
pub(super) fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

impl fmt::Display for RelayAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.url)?;
        let pin = self.pin.map(|pin| format!("pin={}", BASE64URL_NOPAD.encode(&pin)));
        let udp = self.discovery.map(|port| format!("udp={port}"));
        let about: Vec<_> = pin.into_iter().chain(udp).collect();
        if about.is_empty() { Ok(()) } else { write!(f, "#{}", about.join("&")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_reads_what_it_writes_and_refuses_the_rest() {
        let pin = BASE64URL_NOPAD.encode(&[7; 32]);
        for text in [
            "https://relay.example/".to_owned(),
            "http://10.0.0.1:3340/".to_owned(),
            format!("https://[fd00::1]:8443/#pin={pin}"),
            format!("https://10.0.0.1/#pin={pin}&udp=7843"),
            "https://relay.example/#udp=1".to_owned(),
        ] {
            assert_eq!(RelayAt::parse(&text).unwrap().to_string(), text);
        }
        let ours = RelayAt::with_certificate("https://r.example", Some(b"der"), Some(9)).unwrap();
        assert_eq!(RelayAt::parse(&ours.to_string()).unwrap(), ours);
        let refused = [
            "relay".to_owned(),
            "10.0.0.1:3340".into(),
            format!("https://{}", "a".repeat(Offer::RELAY_CHARS_MAX)),
            format!("http://a/#pin={pin}"),
            "http://a/#udp=1".into(),
            "https://a/#udp=0".into(),
            "https://a/#udp=70000".into(),
            "https://a/#udp=1&udp=2".into(),
            "https://a/#".into(),
            "https://a/#pin=AAAA".into(),
            "https://a/#what=1".into(),
        ];
        for text in refused {
            assert!(matches!(RelayAt::parse(&text), Err(NetError::Relay(_))), "{text}");
        }
    }
}
