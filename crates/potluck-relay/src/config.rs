//! What a relay is made of.

use std::{
    net::{Ipv6Addr, SocketAddr},
    num::NonZeroU32,
};

use potluck_grant::Gate;

use crate::Certificate;

/// What a relay is made of.
#[derive(Debug)]
pub struct RelayConfig {
    /// Whose members are helped.
    pub gates: Vec<Gate>,
    /// By what clients know that it is this one; none: plain HTTP, without address discovery, for behind a proxy that speaks TLS.
    pub certificate: Option<Certificate>,
    /// Where it listens by TCP: TLS where there is a certificate.
    pub bind: SocketAddr,
    /// Where it answers who asks for a captive portal, in plain HTTP; used beside a certificate only.
    pub http: SocketAddr,
    /// Where it tells by QUIC from where it sees whoever asks; used beside a certificate only.
    pub discovery: SocketAddr,
    /// Where its metrics are read.
    pub metrics: Option<SocketAddr>,
    /// How many, and how much.
    pub limits: Limits,
    /// What was passed on already, before a restart.
    pub spent: Spent,
}

impl RelayConfig {
    /// A relay with this certificate on every address, at the usual ports: 443 and 80 by TCP, 7842 by UDP.
    pub fn new(gates: Vec<Gate>, certificate: Certificate) -> Self {
        let at = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        Self {
            gates,
            certificate: Some(certificate),
            bind: at(443),
            http: at(80),
            discovery: at(7842),
            metrics: None,
            limits: Limits::default(),
            spent: Spent::default(),
        }
    }
}

/// How many are let in, and how much is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections of one key at once, of which only the latest receives; and of all that one invitation lets in.
    pub connections_of_key: usize,
    /// Bytes that one connection sends in a second, on average; more is held up, not dropped.
    pub bytes_per_second: Option<NonZeroU32>,
    /// Bytes that all of them together send in a UTC day; whoever is there then is put out until the next.
    pub bytes_per_day: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 1_024, connections_of_key: 4, bytes_per_second: None, bytes_per_day: None }
    }
}

/// What was passed on in one UTC day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    /// Days since 1970.
    pub day: u64,
    /// Bytes.
    pub bytes: u64,
}
