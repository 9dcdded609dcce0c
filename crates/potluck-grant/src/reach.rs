//! Which services a grant lets its holder reach: ports, and networks.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::{collections::BTreeSet, fmt, str::FromStr};

use potluck_wire::Service;

use crate::{GrantError, GrantId};

/// Ports of one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    udp: bool,
    first: u16,
    last: u16,
}

/// A network: an address, and how many of its bits name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Net {
    address: IpAddr,
    bits: u8,
}

/// What is to be reached, as far as a grant says something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// What.
    pub service: Service,
    /// Where; none while a name is not resolved: its address is asked for then.
    pub address: Option<IpAddr>,
}

/// Bytes in a day: a limit that is counted, of this link, whoever holds what it was handed on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteBudget {
    /// The link that set it.
    pub link: GrantId,
    /// Bytes in a UTC day, both ways together.
    pub bytes_per_day: u64,
}

/// What a chain of links lets its holder reach: each link's ports and networks at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ReachScope {
    pub(crate) ports: Vec<BTreeSet<Ports>>,
    pub(crate) nets: Vec<BTreeSet<Net>>,
    pub(crate) budgets: Vec<ByteBudget>,
    /// What the root's own link names of what is on a machine's link alone: nobody else can.
    pub(crate) link_local: BTreeSet<Net>,
}

impl Ports {
    /// Those from `first` to `last` of UDP, or of TCP; none where they are none.
    pub fn new(udp: bool, first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { udp, first, last })
    }

    /// Whether they are UDP's.
    pub fn udp(self) -> bool {
        self.udp
    }

    /// The first and the last.
    pub fn range(self) -> (u16, u16) {
        (self.first, self.last)
    }

    /// Whether that service is at one of them. An echo has no port: it is at none.
    pub fn hold(self, service: Service) -> bool {
        match service {
            Service::Tcp(port) => !self.udp && (self.first..=self.last).contains(&port),
            Service::Udp(port) => self.udp && (self.first..=self.last).contains(&port),
            Service::Echo => false,
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.udp { "udp" } else { "tcp" };
        match (self.first, self.last) {
            (0, u16::MAX) => write!(f, "{protocol}:*"),
            (first, last) if first == last => write!(f, "{protocol}:{first}"),
            (first, last) => write!(f, "{protocol}:{first}-{last}"),
        }
    }
}

impl FromStr for Ports {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        let (udp, ports) = match text.split_once(':') {
            Some(("udp", ports)) => (true, ports),
            Some(("tcp", ports)) => (false, ports),
            Some(_) => return Err(no_ports()),
            None => (false, text),
        };
        let port = |text: &str| text.parse::<u16>().map_err(|_| no_ports());
        let (first, last) = match ports.split_once('-') {
            _ if ports == "*" => (0, u16::MAX),
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(ports)?, port(ports)?),
        };
        Self::new(udp, first, last).ok_or_else(no_ports)
    }
}

fn no_ports() -> GrantError {
    GrantError::Unreadable("ports are written as tcp:5432, udp:53 or tcp:8000-8100".into())
}

impl Net {
    /// The network of that many leading bits; none where an address has fewer, or the rest is not zero.
    pub fn new(address: IpAddr, bits: u8) -> Option<Self> {
        let address = address.to_canonical();
        let fits = bits <= width(address) && masked(address, bits) == address;
        fits.then_some(Self { address, bits })
    }

    /// The network of one address.
    pub fn only(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { address, bits: width(address) }
    }

    /// Its address, and the number of its leading bits.
    pub fn parts(self) -> (IpAddr, u8) {
        (self.address, self.bits)
    }

    /// Whether that address is in it.
    pub fn holds(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.bits) == self.address
    }

    /// Whether all of it is what a machine has on its own link alone, where clouds keep their machines' secrets.
    pub fn is_link_local(self) -> bool {
        is_link_local(self.address) && self.bits >= if self.address.is_ipv4() { 16 } else { 10 }
    }
}

/// Whether an address is on its machine's own link alone: 169.254.0.0/16, where clouds keep their machines' secrets, and
/// fe80::/10.
pub fn is_link_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(u32::from(32_u8.saturating_sub(bits))).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(u32::from(128_u8.saturating_sub(bits))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bits == width(self.address) {
            return write!(f, "{}", self.address);
        }
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl FromStr for Net {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        let wrong = || GrantError::Unreadable("a network is written as 192.168.1.10, 10.0.0.0/8 or fd00::/8".into());
        match text.split_once('/') {
            Some((address, bits)) => {
                let (address, bits) = (address.parse().map_err(|_| wrong())?, bits.parse().map_err(|_| wrong())?);
                Self::new(address, bits).ok_or_else(wrong)
            }
            None => text.parse().map(Self::only).map_err(|_| wrong()),
        }
    }
}

impl ReachScope {
    /// Takes away what the next link takes away. `guest`: whose role reaches nothing by itself, so that ports which are named
    /// without a network are the peer's own.
    pub(crate) fn narrow(&mut self, ports: &BTreeSet<Ports>, nets: &BTreeSet<Net>, guest: bool) {
        if !ports.is_empty() {
            self.ports.push(ports.clone());
        }
        if !nets.is_empty() {
            self.nets.push(nets.clone());
        } else if guest {
            let v4 = Net { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), bits: 8 };
            self.nets.push([v4, Net::only(IpAddr::V6(Ipv6Addr::LOCALHOST))].into());
        }
    }

    /// Whether it allows that.
    pub(crate) fn allows(&self, reach: Reach) -> Result<(), GrantError> {
        let port = self.ports.iter().all(|ports| match reach.service {
            // Whether a host is there may be asked by whoever may reach something of it.
            Service::Echo => true,
            service => ports.iter().any(|ports| ports.hold(service)),
        });
        if !port {
            return Err(GrantError::NotThisPort(reach.service));
        }
        let Some(address) = reach.address else { return Ok(()) };
        let held = |nets: &BTreeSet<Net>| nets.iter().any(|net| net.holds(address));
        if !self.nets.iter().all(held) {
            return Err(GrantError::NotThisHost(address));
        }
        // What is on a machine's link alone is meant only where the root says so.
        let nowhere = address.is_unspecified() || address.is_multicast();
        if nowhere || is_link_local(address) && !held(&self.link_local) {
            return Err(GrantError::NotThisHost(address));
        }
        Ok(())
    }
}
