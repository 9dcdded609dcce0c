//! What a peer exposes: ports, of itself, of an address, a network or a name. What is not listed is not there.

use std::{fmt, net::IpAddr, str::FromStr};

use potluck_grant::{Net, Ports, is_link_local};
use potluck_wire::{HOST_BYTES_MAX, Service};

use crate::TunnelError;

/// Ports of a place that members may reach through this peer, as far as their grants go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    ports: Ports,
    at: At,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum At {
    /// The peer's own loopback.
    Own,
    Net(Net),
    /// What is asked for by this name.
    Name(String),
}

impl Exposure {
    /// Whether it can be this service of a host that is asked for by this name, whatever the name leads to.
    pub(crate) fn may_mean(&self, service: Service, name: &str) -> bool {
        let name = name.trim_end_matches('.');
        let port = service == Service::Echo || self.ports.hold(service);
        port && match &self.at {
            At::Own => name.eq_ignore_ascii_case("localhost"),
            At::Net(_) => true,
            At::Name(own) => name.eq_ignore_ascii_case(own),
        }
    }

    /// Whether it is this service at this address, asked for by this name, if by one.
    pub(crate) fn covers(&self, service: Service, address: IpAddr, name: Option<&str>) -> bool {
        let port = service == Service::Echo || self.ports.hold(service);
        port && self.at.holds(address.to_canonical(), name)
    }
}

impl At {
    fn holds(&self, address: IpAddr, name: Option<&str>) -> bool {
        let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
        if address.is_unspecified() || address.is_multicast() || broadcast {
            return false;
        }
        match self {
            Self::Own => address.is_loopback(),
            // A wide network does not mean this machine's own services, nor what is on its link alone.
            Self::Net(net) if address.is_loopback() => net.holds(address) && net.parts().0.is_loopback(),
            Self::Net(net) if is_link_local(address) => net.holds(address) && net.is_link_local(),
            Self::Net(net) => net.holds(address),
            // Whoever answers for a name may let it lead anywhere: it leads to no place that is only this machine's.
            Self::Name(own) => {
                let named = name.is_some_and(|name| name.trim_end_matches('.').eq_ignore_ascii_case(own));
                named && !address.is_loopback() && !is_link_local(address)
            }
        }
    }
}

impl FromStr for Exposure {
    type Err = TunnelError;

    fn from_str(text: &str) -> Result<Self, TunnelError> {
        let wrong = || TunnelError::Exposure(text.chars().take(HOST_BYTES_MAX).collect());
        let (protocol, rest) = match text.split_once(':') {
            Some((protocol @ ("tcp" | "udp"), rest)) => (protocol, rest),
            _ => ("tcp", text),
        };
        let (at, ports) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (net, ports) = rest.split_once("]:").ok_or_else(wrong)?;
                (At::Net(net.parse().map_err(|_| wrong())?), ports)
            }
            None => match rest.rsplit_once(':') {
                Some((host, ports)) => (at(host).ok_or_else(wrong)?, ports),
                None => (At::Own, rest),
            },
        };
        let ports: Ports = format!("{protocol}:{ports}").parse().map_err(|_| wrong())?;
        Ok(Self { ports, at })
    }
}

fn at(host: &str) -> Option<At> {
    if host == "localhost" {
        return Some(At::Own);
    }
    if host.contains('/') || host.parse::<IpAddr>().is_ok() {
        return host.parse().ok().map(At::Net);
    }
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let fits = !host.is_empty() && host.len() <= HOST_BYTES_MAX && host.bytes().all(letters);
    // Four numbers that are no address are a slip, and no name.
    let number = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    (fits && !number).then(|| At::Name(host.trim_end_matches('.').to_ascii_lowercase()))
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = self.ports.to_string();
        let (protocol, ports) = ports.split_once(':').unwrap_or(("tcp", &ports));
        match &self.at {
            At::Own => write!(f, "{protocol}:{ports}"),
            At::Net(net) if net.parts().0.is_ipv6() => write!(f, "{protocol}:[{net}]:{ports}"),
            At::Net(net) => write!(f, "{protocol}:{net}:{ports}"),
            At::Name(name) => write!(f, "{protocol}:{name}:{ports}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn covers(exposure: &str, service: Service, address: &str, name: Option<&str>) -> bool {
        exposure.parse::<Exposure>().unwrap().covers(service, address.parse().unwrap(), name)
    }

    const SSH: Service = Service::Tcp(22);

    #[test]
    fn what_is_written_is_what_is_exposed() {
        for text in
            ["tcp:22", "udp:53", "tcp:192.168.1.10:5432", "tcp:10.0.0.0/8:*", "tcp:[fd00::1]:22", "udp:db.lan:1-9"]
        {
            assert_eq!(text.parse::<Exposure>().unwrap().to_string(), text);
        }
        assert_eq!("22".parse::<Exposure>().unwrap(), "tcp:localhost:22".parse().unwrap());
        for bad in ["", ":", "x", "22:", "192.168.1:22", "10.0.0.1/8:22", "fd00::1:", "[fd00::1]22", "a b:22", "tcp:"] {
            assert!(bad.parse::<Exposure>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_alone_is_the_peers_own() {
        assert!(covers("22", SSH, "127.0.0.1", None) && covers("22", SSH, "::1", None));
        assert!(covers("22", SSH, "::ffff:127.0.0.1", None), "in an IPv6 coat");
        assert!(!covers("22", SSH, "192.168.1.1", None));
        assert!(
            !covers("22", Service::Tcp(23), "127.0.0.1", None) && !covers("22", Service::Udp(22), "127.0.0.1", None)
        );
        assert!(covers("22", Service::Echo, "127.0.0.1", None) && !covers("22", Service::Echo, "10.0.0.1", None));
    }

    #[test]
    fn a_wide_network_is_not_this_machine_and_not_its_link() {
        for address in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255"] {
            assert!(!covers("0.0.0.0/0:*", SSH, address, None), "{address}");
        }
        for address in ["::1", "fe80::1", "ff02::1", "::"] {
            assert!(!covers("[::/0]:*", SSH, address, None), "{address}");
        }
        assert!(covers("0.0.0.0/0:*", SSH, "8.8.8.8", None));
        assert!(covers("169.254.169.254:22", SSH, "169.254.169.254", None));
        assert!(covers("127.0.0.0/8:22", SSH, "127.0.0.2", None));
    }

    #[test]
    fn a_name_leads_to_no_place_that_is_only_this_machines() {
        assert!(covers("db.lan:22", SSH, "10.0.0.1", Some("DB.lan.")));
        assert!(
            !covers("db.lan:22", SSH, "10.0.0.1", Some("other.lan")) && !covers("db.lan:22", SSH, "10.0.0.1", None)
        );
        for rebound in ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "0.0.0.0", "::ffff:127.0.0.1"] {
            assert!(!covers("db.lan:22", SSH, rebound, Some("db.lan")), "{rebound}");
        }
    }
}
