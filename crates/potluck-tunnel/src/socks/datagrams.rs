//! UDP ASSOCIATE: packets of one program, for as long as the connection that asked for it stands.

use std::net::SocketAddr;

use bytes::Bytes;
use potluck_wire::{Dial, Host, Service};
use tokio::{
    io::AsyncReadExt,
    net::{TcpStream, UdpSocket},
    sync::mpsc,
};
use tracing::debug;

use super::{
    answer,
    codec::{Reply, answer_packet, packet},
};
use crate::{
    Far, UdpTimes,
    forward::{ANSWERS_MAX, PACKET_BYTES},
    udp::UdpFlows,
};

/// A flow of a program: where it sends from, to whom.
type Key = (SocketAddr, Host, u16);

pub(super) async fn associate(mut control: TcpStream, far: Far, times: UdpTimes) {
    let socket = match bound_beside(&control).await {
        Ok(socket) => socket,
        Err(error) => {
            debug!(%error, "no socket for a program's packets");
            answer(&mut control, Reply::Failed, None).await;
            return;
        }
    };
    let (Ok(at), Ok(program)) = (socket.local_addr(), control.peer_addr()) else { return };
    if !answer(&mut control, Reply::Done, Some(at)).await {
        return;
    }
    let (answers, mut answered) = mpsc::channel::<(Key, Bytes)>(ANSWERS_MAX);
    let mut flows = UdpFlows::new(far, times, answers);
    let (mut bytes, mut nothing) = (vec![0; PACKET_BYTES], [0; 64]);
    loop {
        tokio::select! {
            came = socket.recv_from(&mut bytes) => {
                let Ok((len, from)) = came else { continue };
                // Nobody else's, and one that is wrong ends nothing.
                let asked = packet(&bytes[..len]).filter(|_| from.ip() == program.ip());
                let Some((host, port, begin)) = asked else { continue };
                let dial = Dial { service: Service::Udp(port), host: host.clone() };
                flows.send((from, host, port), dial, Bytes::copy_from_slice(&bytes[begin..len]));
            }
            Some(((to, host, port), packet)) = answered.recv() => {
                let _ = socket.send_to(&answer_packet(&host, port, &packet), to).await;
            }
            read = control.read(&mut nothing) => if matches!(read, Ok(0) | Err(_)) {
                return;
            },
        }
    }
}

/// A socket where the program reaches us already.
async fn bound_beside(control: &TcpStream) -> std::io::Result<UdpSocket> {
    UdpSocket::bind((control.local_addr()?.ip(), 0)).await
}
