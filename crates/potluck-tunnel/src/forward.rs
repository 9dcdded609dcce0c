//! Single ports: what connects or sends to a socket here comes out at a service there.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use potluck_wire::Dial;
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    task::JoinSet,
    time::sleep,
};
use tracing::warn;

use crate::{
    Far, UdpTimes,
    copy::{Free, copy, prepare, reset},
    udp::UdpFlows,
};

/// Connections of one listener at once. The next one waits to be accepted.
pub(crate) const CONNECTIONS_MAX: usize = 4_096;

/// Answers of all flows of a socket that wait to be sent.
pub(crate) const ANSWERS_MAX: usize = 1_024;

/// Bytes of the largest packet.
pub(crate) const PACKET_BYTES: usize = 64 << 10;

/// How long a listener rests where it has no handles left.
const REST: Duration = Duration::from_millis(100);

/// Carries what connects to that listener to a service. Never returns: the listener outlives the connection behind it.
pub async fn forward_tcp(listener: TcpListener, far: Far, dial: Dial) {
    accept(listener, |socket| connection(socket, far.clone(), dial.clone())).await
}

/// Accepts, and has each connection attended to.
pub(crate) async fn accept<F>(listener: TcpListener, mut attend: impl FnMut(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((socket, _)) => drop(connections.spawn(attend(socket))),
                Err(error) => {
                    warn!(%error, "a connection was not accepted");
                    sleep(REST).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn connection(socket: TcpStream, far: Far, dial: Dial) {
    match far.open(&dial).await {
        Ok(opened) if prepare(&socket).is_ok() => {
            copy(socket, opened.send, opened.recv, Free).await;
        }
        Ok(_) => {}
        Err(error) => {
            warn!(%error, "a connection was reset");
            reset(socket);
        }
    }
}

/// Carries packets that come to that socket to a service, and its answers to whoever sent them. Returns where the socket breaks.
///
/// # Errors
/// The socket's.
pub async fn forward_udp(socket: UdpSocket, far: Far, dial: Dial, times: UdpTimes) -> io::Result<()> {
    let (answers, mut answered) = mpsc::channel::<(SocketAddr, Bytes)>(ANSWERS_MAX);
    let mut flows = UdpFlows::new(far, times, answers);
    let mut packet = vec![0; PACKET_BYTES];
    loop {
        tokio::select! {
            came = socket.recv_from(&mut packet) => match came {
                Ok((len, from)) => flows.send(from, dial.clone(), Bytes::copy_from_slice(&packet[..len])),
                // What one of those who sent says by ICMP is no end of the socket.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => return Err(error),
            },
            Some((to, packet)) = answered.recv() => drop(socket.send_to(&packet, to).await),
        }
    }
}
