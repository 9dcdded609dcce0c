//! IP packets as bytes: what a packet is about, and the packets that answer it.

use std::net::{IpAddr, SocketAddr};

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet, TcpPacket,
        UdpPacket, UdpRepr,
    },
};

/// Hops that a packet of ours may take: none is more than one away.
const HOPS: u8 = 64;

/// What a packet is about. It may come from any program of this machine.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    Tcp {
        from: SocketAddr,
        to: SocketAddr,
        opens: bool,
    },
    Udp {
        from: SocketAddr,
        to: SocketAddr,
        bytes: &'a [u8],
    },
    Echo(Echo),
    /// A part of a packet, or of a protocol that is not carried.
    Other,
}

/// A question whether a host is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Echo {
    from: IpAddr,
    pub(super) to: IpAddr,
    ident: u16,
    number: u16,
    bytes: Vec<u8>,
}

/// Reads a packet.
pub(super) fn read(bytes: &[u8]) -> Packet<'_> {
    let packet = match bytes.first().map(|first| first >> 4) {
        Some(4) => read_v4(bytes),
        Some(6) => read_v6(bytes),
        _ => None,
    };
    packet.unwrap_or(Packet::Other)
}

fn read_v4(bytes: &[u8]) -> Option<Packet<'_>> {
    let packet = Ipv4Packet::new_checked(bytes).ok()?;
    if packet.more_frags() || packet.frag_offset() != 0 {
        return None;
    }
    let (from, to) = (IpAddr::V4(packet.src_addr()), IpAddr::V4(packet.dst_addr()));
    if packet.next_header() != IpProtocol::Icmp {
        return read_ports(packet.next_header(), from, to, packet.payload());
    }
    let icmp = Icmpv4Packet::new_checked(packet.payload()).ok()?;
    match Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default()).ok()? {
        Icmpv4Repr::EchoRequest { ident, seq_no, data } => {
            Some(Packet::Echo(Echo { from, to, ident, number: seq_no, bytes: data.to_vec() }))
        }
        _ => None,
    }
}

fn read_v6(bytes: &[u8]) -> Option<Packet<'_>> {
    let packet = Ipv6Packet::new_checked(bytes).ok()?;
    let (own, there) = (packet.src_addr(), packet.dst_addr());
    let (from, to) = (IpAddr::V6(own), IpAddr::V6(there));
    if packet.next_header() != IpProtocol::Icmpv6 {
        return read_ports(packet.next_header(), from, to, packet.payload());
    }
    let icmp = Icmpv6Packet::new_checked(packet.payload()).ok()?;
    match Icmpv6Repr::parse(&own, &there, &icmp, &ChecksumCapabilities::default()).ok()? {
        Icmpv6Repr::EchoRequest { ident, seq_no, data } => {
            Some(Packet::Echo(Echo { from, to, ident, number: seq_no, bytes: data.to_vec() }))
        }
        _ => None,
    }
}

fn read_ports(protocol: IpProtocol, from: IpAddr, to: IpAddr, bytes: &[u8]) -> Option<Packet<'_>> {
    let at = SocketAddr::new;
    match protocol {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(bytes).ok()?;
            let opens = tcp.syn() && !tcp.ack() && !tcp.rst();
            Some(Packet::Tcp { from: at(from, tcp.src_port()), to: at(to, tcp.dst_port()), opens })
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(bytes).ok()?;
            if !udp.verify_checksum(&from.into(), &to.into()) {
                return None;
            }
            let (from, to) = (at(from, udp.src_port()), at(to, udp.dst_port()));
            // Its own length may be less than what is there.
            let len = usize::from(udp.len());
            Some(Packet::Udp { from, to, bytes: bytes.get(8..len)? })
        }
        _ => None,
    }
}

/// A packet of UDP.
pub(super) fn udp(from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    let repr = UdpRepr { src_port: from.port(), dst_port: to.port() };
    let length = repr.header_len() + bytes.len();
    let (mut packet, header) = ip(from.ip(), to.ip(), IpProtocol::Udp, length);
    let (own, there) = (from.ip().into(), to.ip().into());
    let mut body = UdpPacket::new_unchecked(&mut packet[header..]);
    repr.emit(&mut body, &own, &there, bytes.len(), |buffer| buffer.copy_from_slice(bytes), &checksums);
    packet
}

impl Echo {
    /// Its answer.
    pub(super) fn answer(&self) -> Vec<u8> {
        let checksums = ChecksumCapabilities::default();
        let Self { from, to, ident, number: seq_no, bytes: data } = self;
        let (ident, seq_no) = (*ident, *seq_no);
        match (to, from) {
            (IpAddr::V6(own), IpAddr::V6(there)) => {
                let repr = Icmpv6Repr::EchoReply { ident, seq_no, data };
                let (mut packet, header) = ip(*to, *from, IpProtocol::Icmpv6, repr.buffer_len());
                repr.emit(own, there, &mut Icmpv6Packet::new_unchecked(&mut packet[header..]), &checksums);
                packet
            }
            _ => {
                let repr = Icmpv4Repr::EchoReply { ident, seq_no, data };
                let (mut packet, header) = ip(*to, *from, IpProtocol::Icmp, repr.buffer_len());
                repr.emit(&mut Icmpv4Packet::new_unchecked(&mut packet[header..]), &checksums);
                packet
            }
        }
    }
}

/// A packet with its header, and where its body begins.
fn ip(from: IpAddr, to: IpAddr, protocol: IpProtocol, length: usize) -> (Vec<u8>, usize) {
    let repr = IpRepr::new(from.into(), to.into(), protocol, length, HOPS);
    let mut packet = vec![0; repr.buffer_len()];
    repr.emit(&mut packet[..], &ChecksumCapabilities::default());
    (packet, repr.header_len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn packets_read_what_they_write() {
        for (from, to) in [("10.0.0.1:1000", "10.0.0.2:53"), ("[fd00::1]:1000", "[fd00::2]:53")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let written = udp(from, to, b"hello");
            assert_eq!(read(&written), Packet::Udp { from, to, bytes: b"hello" });
            let mut broken = written.clone();
            *broken.last_mut().unwrap() ^= 1;
            assert_eq!(read(&broken), Packet::Other, "a checksum that is wrong");
            for len in 0..written.len() {
                assert_eq!(read(&written[..len]), Packet::Other, "{len} bytes");
            }
        }
    }

    #[test]
    fn an_echo_is_answered_by_whom_it_asks() {
        let (from, to) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let echo = Echo { from, to, ident: 7, number: 9, bytes: b"abc".to_vec() };
        let answer = echo.answer();
        let packet = Ipv4Packet::new_checked(&answer[..]).unwrap();
        assert_eq!((IpAddr::V4(packet.src_addr()), IpAddr::V4(packet.dst_addr())), (to, from));
        let icmp = Icmpv4Packet::new_checked(packet.payload()).unwrap();
        let repr = Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default()).unwrap();
        assert_eq!(repr, Icmpv4Repr::EchoReply { ident: 7, seq_no: 9, data: b"abc" });
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 0_u8..16) {
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | *first & 0xf;
            }
            let _ = read(&bytes);
        }
    }
}
