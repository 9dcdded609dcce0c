//! A door for whole networks: a device of this machine, to which its system routes ranges of addresses.
//!
//! TCP is ended here and carried as streams, so that no congestion control runs within another's; UDP goes as flows; an ICMP echo
//! is answered where the far side reaches whom it asks for. All else is not carried.

mod device;
mod packet;
mod stack;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use potluck_net::{RecvStream, SendStream, VarInt};
use potluck_wire::{Dial, Service};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tracing::{debug, info};

use crate::{Far, UdpTimes, forward::ANSWERS_MAX, udp::UdpFlows};
use packet::{Echo, Packet};
use stack::{Ends, Piece, Stack};

pub use device::TunDevice;

/// Bytes of the device's packets: what IPv6 asks for, and every path carries.
pub(crate) const MTU: u16 = 1_280;

/// The device's own addresses here, of ranges that nobody routes.
pub(crate) const OWN_V4: Ipv4Addr = Ipv4Addr::new(100, 127, 255, 254);
pub(crate) const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfd70, 0x6f74, 0x6c75, 0x636b, 0, 0, 0, 1);

/// What stands for all that is behind the device.
pub(crate) const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(100, 127, 255, 253);
pub(crate) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd70, 0x6f74, 0x6c75, 0x636b, 0, 0, 0, 2);

/// Questions whether hosts are there, at once. The next one is dropped.
const ECHOES_MAX: usize = 64;

/// Bytes that are read of a stream at a time.
const PIECE_BYTES: usize = 16 << 10;

/// With which code a stream is reset: its connection was.
const RESET: u32 = 1;

/// A flow of packets: who sends, and to whom.
type Pair = (SocketAddr, SocketAddr);

/// Carries what the system routes to that device, until the device breaks.
///
/// # Errors
/// The device's.
pub async fn serve(device: TunDevice, far: Far, times: UdpTimes, seed: u64) -> io::Result<()> {
    let (answers, mut answered) = mpsc::channel::<(Pair, Bytes)>(ANSWERS_MAX);
    let mut flows = UdpFlows::new(far.clone(), times, answers);
    let (mut stack, mut streams, mut echoes) = (Stack::new(seed), JoinSet::new(), JoinSet::<Option<Echo>>::new());
    let (moved, own) = (stack.moved(), far.own_ports());
    let mut bytes = vec![0; usize::from(u16::MAX)];
    loop {
        for packet in stack.run() {
            send(&device, &packet).await;
        }
        let wakes = stack.poll_at().map(Instant::from_std);
        let alarm = async {
            match wakes {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            len = device.recv(&mut bytes) => match packet::read(&bytes[..len?]) {
                Packet::Tcp { from, to, opens } => {
                    let len = packet_length(&bytes);
                    if let Some(ends) = stack.take(&bytes[..len], (from, to), opens) {
                        streams.spawn(connection(far.clone(), ends));
                    }
                }
                // The endpoint tries every address of the peer, those behind this device as well: that way would lead through itself.
                Packet::Udp { from, .. } if own.contains(&from.port()) => {}
                Packet::Udp { from, to, bytes } => {
                    let dial = Dial { service: Service::Udp(to.port()), host: to.ip().into() };
                    flows.send((from, to), dial, Bytes::copy_from_slice(bytes));
                }
                Packet::Echo(echo) if echoes.len() < ECHOES_MAX => drop(echoes.spawn(ask(far.clone(), echo))),
                Packet::Echo(_) | Packet::Other => {}
            },
            Some(((from, to), bytes)) = answered.recv() => {
                let packet = packet::udp(to, from, &bytes);
                if packet.len() > usize::from(MTU) {
                    info!(%to, bytes = bytes.len(), "an answer is larger than the device's packets: it is lost");
                } else {
                    send(&device, &packet).await;
                }
            }
            Some(echo) = echoes.join_next(), if !echoes.is_empty() => if let Ok(Some(echo)) = echo {
                send(&device, &echo.answer()).await;
            },
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
            () = moved.notified() => {}
            () = alarm => {}
        }
    }
}

/// A packet that does not go is lost, as on any wire.
async fn send(device: &TunDevice, packet: &[u8]) {
    if let Err(error) = device.send(packet).await {
        debug!(%error, "a packet was lost");
    }
}

/// The bytes of the packet at the beginning, as its header says: it has been read already.
fn packet_length(bytes: &[u8]) -> usize {
    let word = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    if bytes[0] >> 4 == 4 { word(2) } else { 40 + word(4) }
}

/// Whether a host is there: the echo, to be answered.
async fn ask(far: Far, echo: Echo) -> Option<Echo> {
    let dial = Dial { service: Service::Echo, host: echo.to.into() };
    match far.open(&dial).await {
        Ok(_) => Some(echo),
        Err(error) => {
            debug!(to = %echo.to, %error, "an echo is not answered");
            None
        }
    }
}

/// One connection's stream.
async fn connection(far: Far, ends: Ends) {
    let Ends { to, mut from_program, to_program, moved } = ends;
    let give = async |piece| {
        let given = to_program.send(piece).await.is_ok();
        moved.notify_one();
        given
    };
    let dial = Dial { service: Service::Tcp(to.port()), host: to.ip().into() };
    let opened = match far.open(&dial).await {
        Ok(opened) => opened,
        Err(error) => {
            info!(%to, %error, "a connection was refused");
            give(Piece::Reset).await;
            return;
        }
    };
    let (mut send, mut recv) = (opened.send, opened.recv);
    if !give(Piece::Connected).await {
        return;
    }
    let up = up(&mut from_program, &mut send, &moved);
    let down = async {
        loop {
            let came = tokio::select! {
                came = recv.read_chunk(PIECE_BYTES) => came,
                // A program that is gone is waited for no longer, however silent its service.
                () = to_program.closed() => return false,
            };
            match came {
                Ok(Some(bytes)) => {
                    if !give(Piece::Bytes(bytes)).await {
                        return false;
                    }
                }
                Ok(None) => return give(Piece::End).await,
                Err(_) => return false,
            }
        }
    };
    let well = both(up, down).await;
    if !well {
        finish_badly(&mut send, &mut recv);
        give(Piece::Reset).await;
    }
}

/// Both, until one of them fails.
async fn both(up: impl Future<Output = bool>, down: impl Future<Output = bool>) -> bool {
    let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
    tokio::select! {
        well = &mut up => well && down.await,
        well = &mut down => well && up.await,
    }
}

async fn up(from_program: &mut mpsc::Receiver<Piece>, send: &mut SendStream, moved: &Arc<tokio::sync::Notify>) -> bool {
    loop {
        let piece = from_program.recv().await;
        moved.notify_one();
        match piece {
            Some(Piece::Bytes(bytes)) => {
                if send.write_chunk(bytes).await.is_err() {
                    return false;
                }
            }
            Some(Piece::End) => return send.finish().is_ok(),
            Some(Piece::Connected | Piece::Reset) | None => return false,
        }
    }
}

fn finish_badly(send: &mut SendStream, recv: &mut RecvStream) {
    let code = VarInt::from_u32(RESET);
    let _ = send.reset(code);
    let _: Result<(), _> = recv.stop(code);
}
