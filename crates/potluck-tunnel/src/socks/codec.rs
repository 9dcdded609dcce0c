//! The bytes of SOCKS 5.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use potluck_wire::{HOST_BYTES_MAX, Host};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const VERSION: u8 = 5;

/// No password; and the answer that no way to sign on is known.
const NO_PASSWORD: u8 = 0;
const NO_METHOD: u8 = 0xff;

const V4: u8 = 1;
const NAME: u8 = 3;
const V6: u8 = 4;

/// What a program wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Connect,
    Associate,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    Done = 0,
    Failed = 1,
    NotAllowed = 2,
    NoNetwork = 3,
    NoHost = 4,
    Refused = 5,
    Late = 6,
    NoCommand = 7,
    NoKind = 8,
}

/// Why a program was not understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocksError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("version {0}")]
    Version(u8),
    #[error("it wants to sign on, which nobody does here")]
    Method,
    #[error("command {0} is not served")]
    Command(u8),
    #[error("an address of kind {0}")]
    Kind(u8),
    #[error("a name that is none")]
    Name,
}

impl SocksError {
    /// What the program is told; none where it would not understand.
    pub(super) fn reply(&self) -> Option<Reply> {
        match self {
            Self::Command(_) => Some(Reply::NoCommand),
            Self::Kind(_) => Some(Reply::NoKind),
            Self::Name => Some(Reply::NoHost),
            _ => None,
        }
    }
}

/// Reads what a program wants, and where.
pub(super) async fn request<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut S,
) -> Result<(Command, Host, u16), SocksError> {
    let [version, methods] = read(socket).await?;
    if version != VERSION {
        return Err(SocksError::Version(version));
    }
    let mut offered = vec![0; usize::from(methods)];
    socket.read_exact(&mut offered).await?;
    if !offered.contains(&NO_PASSWORD) {
        socket.write_all(&[VERSION, NO_METHOD]).await?;
        return Err(SocksError::Method);
    }
    socket.write_all(&[VERSION, NO_PASSWORD]).await?;
    let [version, command, _, kind] = read(socket).await?;
    if version != VERSION {
        return Err(SocksError::Version(version));
    }
    let host = match kind {
        V4 => Host::V4(read(socket).await?),
        V6 => Host::from(IpAddr::V6(Ipv6Addr::from(read::<16>(socket).await?))),
        NAME => {
            let [len] = read(socket).await?;
            let mut name = vec![0; usize::from(len)];
            socket.read_exact(&mut name).await?;
            host_of(&name).ok_or(SocksError::Name)?
        }
        kind => return Err(SocksError::Kind(kind)),
    };
    let port = u16::from_be_bytes(read(socket).await?);
    match command {
        1 => Ok((Command::Connect, host, port)),
        3 => Ok((Command::Associate, host, port)),
        command => Err(SocksError::Command(command)),
    }
}

async fn read<const N: usize>(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    socket.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// A host as programs name it: some write addresses as names.
fn host_of(name: &[u8]) -> Option<Host> {
    let name = std::str::from_utf8(name).ok()?;
    if let Ok(address) = name.parse::<IpAddr>() {
        return Some(address.into());
    }
    let fits = !name.is_empty() && name.len() <= HOST_BYTES_MAX && name.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| Host::Name(name.to_owned()))
}

/// A reply's bytes.
pub(super) fn reply(reply: Reply, at: Option<SocketAddr>) -> Vec<u8> {
    let mut bytes = vec![VERSION, reply as u8, 0];
    let at = at.unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    write_address(&at.ip().into(), at.port(), &mut bytes);
    bytes
}

fn write_address(host: &Host, port: u16, out: &mut Vec<u8>) {
    match host {
        Host::V4(octets) => {
            out.push(V4);
            out.extend_from_slice(octets);
        }
        Host::V6(octets) => {
            out.push(V6);
            out.extend_from_slice(octets);
        }
        Host::Name(name) => {
            out.extend_from_slice(&[NAME, name.len() as u8]);
            out.extend_from_slice(name.as_bytes());
        }
        Host::Own => {
            out.push(V4);
            out.extend_from_slice(&Ipv4Addr::LOCALHOST.octets());
        }
    }
    out.extend_from_slice(&port.to_be_bytes());
}

/// A packet as a program sends it: to whom, and where its bytes begin; none where it is not one, or a part of one.
pub(super) fn packet(bytes: &[u8]) -> Option<(Host, u16, usize)> {
    let [0, 0, fragment, kind, rest @ ..] = bytes else { return None };
    if *fragment != 0 {
        return None;
    }
    let (host, len) = match *kind {
        V4 => (Host::V4(*rest.first_chunk()?), 4),
        V6 => (Host::from(IpAddr::V6(Ipv6Addr::from(*rest.first_chunk::<16>()?))), 16),
        NAME => {
            let len = usize::from(*rest.first()?);
            (host_of(rest.get(1..1 + len)?)?, 1 + len)
        }
        _ => return None,
    };
    let port = u16::from_be_bytes(*rest.get(len..)?.first_chunk()?);
    Some((host, port, 4 + len + 2))
}

/// An answer as a program reads it: from whom, and its bytes.
pub(super) fn answer_packet(host: &Host, port: u16, packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0];
    write_address(host, port, &mut bytes);
    bytes.extend_from_slice(packet);
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is made of these bytes, and what is answered.
    async fn asked(bytes: &[u8]) -> (Result<(Command, Host, u16), SocksError>, Vec<u8>) {
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 12);
        theirs.write_all(bytes).await.unwrap();
        theirs.shutdown().await.unwrap();
        let asked = request(&mut ours).await;
        drop(ours);
        let mut answered = Vec::new();
        theirs.read_to_end(&mut answered).await.unwrap();
        (asked, answered)
    }

    #[tokio::test]
    async fn requests_are_read() {
        let name = [&[5, 2, 2, 0, 5, 1, 0, 3, 7][..], b"db.lan.", &[0x15, 0x38]].concat();
        let (asked_name, answered) = asked(&name).await;
        assert_eq!(asked_name.unwrap(), (Command::Connect, Host::Name("db.lan.".into()), 5432));
        assert_eq!(answered, [5, 0]);
        let v4 = [5, 1, 0, 5, 3, 0, 1, 10, 0, 0, 1, 0, 53];
        assert_eq!(asked(&v4).await.0.unwrap(), (Command::Associate, Host::V4([10, 0, 0, 1]), 53));
        let written = [&[5, 1, 0, 5, 1, 0, 3, 8][..], b"10.0.0.1", &[0, 22]].concat();
        assert_eq!(asked(&written).await.0.unwrap().1, Host::V4([10, 0, 0, 1]), "an address that is written as a name");
        let mut v6 = vec![5, 1, 0, 5, 1, 0, 4];
        v6.extend("::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets());
        v6.extend([0, 22]);
        assert_eq!(asked(&v6).await.0.unwrap().1, Host::V4([10, 0, 0, 1]), "an IPv4 address in an IPv6 coat");
    }

    #[tokio::test]
    async fn what_is_not_understood_is_said() {
        assert!(matches!(asked(&[4, 1]).await.0, Err(SocksError::Version(4))));
        let (signs_on, answered) = asked(&[5, 1, 2]).await;
        assert!(matches!(signs_on, Err(SocksError::Method)) && answered == [5, 0xff]);
        let bind = asked(&[5, 1, 0, 5, 2, 0, 1, 1, 2, 3, 4, 0, 1]).await.0.unwrap_err();
        assert_eq!(bind.reply(), Some(Reply::NoCommand));
        assert_eq!(asked(&[5, 1, 0, 5, 1, 0, 9]).await.0.unwrap_err().reply(), Some(Reply::NoKind));
        assert_eq!(asked(&[5, 1, 0, 5, 1, 0, 3, 0, 0, 1]).await.0.unwrap_err().reply(), Some(Reply::NoHost));
        assert_eq!(reply(Reply::Late, None), [5, 6, 0, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_part_of_a_packet_is_dropped() {
        let whole = answer_packet(&Host::V4([10, 0, 0, 1]), 53, b"hi");
        assert_eq!(packet(&whole), Some((Host::V4([10, 0, 0, 1]), 53, whole.len() - 2)));
        let mut part = whole.clone();
        part[2] = 1;
        assert_eq!(packet(&part), None);
        for len in 0..whole.len() - 2 {
            assert_eq!(packet(&whole[..len]), None, "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some((host, port, begin)) = packet(&bytes) {
                prop_assert!(begin <= bytes.len());
                let again = answer_packet(&host, port, &bytes[begin..]);
                let (same, same_port, _) = packet(&again).unwrap();
                prop_assert_eq!((same, same_port), (host, port));
            }
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(asked(&bytes));
        }
    }
}
