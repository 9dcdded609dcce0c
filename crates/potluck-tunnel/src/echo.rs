//! Whether a host is there: an ICMP echo of this machine's own, where the system lets us send one.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::UdpSocket, time::timeout};

/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Bytes before an echo's own, of the longest IPv4 header.
const HEADER_MAX: usize = 60;

/// Bytes of our echo: its head, and a number by which its answer is known.
const ECHO_BYTES: usize = 16;

/// The number of the next echo.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// Whether that host answers, or is this machine itself.
pub(crate) async fn answers(address: IpAddr) -> bool {
    // Only an address of this machine can be listened at.
    if address.is_loopback() || UdpSocket::bind((address, 0)).await.is_ok() {
        return true;
    }
    match ask(address).await {
        Ok(answered) => answered,
        Err(error) => {
            tracing::info!(%error, "this machine may send no ICMP echo: nobody is told that a host is there");
            false
        }
    }
}

async fn ask(address: IpAddr) -> io::Result<bool> {
    let v4 = address.is_ipv4();
    let (domain, protocol) = if v4 { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
    // The first is for everybody where the system allows it, the second for root.
    let socket =
        Socket::new(domain, Type::DGRAM, Some(protocol)).or_else(|_| Socket::new(domain, Type::RAW, Some(protocol)))?;
    let any = if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    socket.bind(&SocketAddr::new(any, 0).into())?;
    socket.set_nonblocking(true)?;
    socket.connect(&SocketAddr::new(address, 0).into())?;
    let socket = UdpSocket::from_std(std::net::UdpSocket::from(socket))?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    socket.send(&echo(if v4 { 8 } else { 128 }, number)).await?;
    let answer = async {
        let mut bytes = [0; HEADER_MAX + ECHO_BYTES];
        loop {
            // What says that the host is not there comes as an error.
            let Ok(len) = socket.recv(&mut bytes).await else { return false };
            if is_answer(&bytes[..len], if v4 { 0 } else { 129 }, number) {
                return true;
            }
        }
    };
    Ok(timeout(ANSWER_MAX, answer).await.unwrap_or(false))
}

/// An echo request: kind, code, checksum, identifier, sequence, and the number twice.
fn echo(kind: u8, number: u32) -> [u8; ECHO_BYTES] {
    let [a, b, c, d] = number.to_be_bytes();
    let mut bytes = [kind, 0, 0, 0, a, b, c, d, a, b, c, d, b'p', b'o', b't', b'l'];
    let words = bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let [high, low] = (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes();
    // Of ICMPv6 the system fills it in.
    (bytes[2], bytes[3]) = (high, low);
    bytes
}

/// Whether these bytes, with an IPv4 header before them or without, answer that echo. The identifier may be the system's own.
fn is_answer(bytes: &[u8], kind: u8, number: u32) -> bool {
    let header = match bytes.first() {
        Some(first) if first >> 4 == 4 && bytes.len() > ECHO_BYTES => usize::from(first & 0xf) * 4,
        _ => 0,
    };
    let asked = echo(kind, number);
    bytes.get(header..).is_some_and(|bytes| bytes.len() >= ECHO_BYTES && bytes[0] == kind && bytes[8..16] == asked[8..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_from_others() {
        let answer = echo(0, 7);
        assert!(is_answer(&answer, 0, 7) && !is_answer(&answer, 0, 8) && !is_answer(&answer, 129, 7));
        let mut with_header = vec![0x45; 20];
        with_header.extend(answer);
        assert!(is_answer(&with_header, 0, 7));
        assert!(!is_answer(&[], 0, 7) && !is_answer(&with_header[..30], 0, 7) && !is_answer(&[0x4f; 20], 0, 7));
    }

    #[tokio::test]
    async fn this_machine_is_there_and_a_place_that_is_nobodys_is_not() {
        assert!(answers(IpAddr::V4(Ipv4Addr::LOCALHOST)).await);
        assert!(!answers(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77))).await);
    }
}
