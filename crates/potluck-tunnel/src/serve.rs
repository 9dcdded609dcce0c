//! The side that exposes: streams in, what they ask for dialled, bytes both ways.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use potluck_core::PeerId;
use potluck_grant::{ByteMeter, Member};
use potluck_net::{Node, RecvStream, SendStream, Tunnel, Tunnels};
use potluck_wire::{NotReached, TunnelFrame};
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, info};

use crate::{
    Apps, Exposure, Resolver, UdpTimes, apps,
    copy::{Toll, copy},
    flows::{Flow, Flows},
    frame,
    reach::{Reached, reach},
};

/// Longest wait for a stream's first frame, and for its answer to be taken.
pub(crate) const FRAME_MAX: Duration = Duration::from_secs(10);

/// Connections and flows of one member at once. The next one is refused with `Busy`.
const MEMBER_STREAMS_MAX: usize = 2_048;

/// Bytes of the largest packet that is read of a socket.
const PACKET_BYTES: usize = 64 << 10;

const _: () = assert!(MEMBER_STREAMS_MAX < potluck_net::TUNNEL_STREAMS_MAX as usize, "a refusal has a stream to go by");

/// What is exposed, and how.
#[derive(Debug)]
pub struct Exposing {
    exposed: Vec<Exposure>,
    resolver: Resolver,
    times: UdpTimes,
    meter: Mutex<ByteMeter>,
    streams: Mutex<HashMap<PeerId, usize>>,
    apps: Apps,
}

impl Exposing {
    /// These, and nothing else.
    pub fn new(exposed: impl IntoIterator<Item = Exposure>) -> Self {
        Self {
            exposed: exposed.into_iter().collect(),
            resolver: Resolver::system(),
            times: UdpTimes::default(),
            meter: Mutex::default(),
            streams: Mutex::default(),
            apps: Apps::default(),
        }
    }

    /// With these applications.
    #[must_use]
    pub fn serving(self, apps: Apps) -> Self {
        Self { apps, ..self }
    }

    /// With names resolved by that.
    #[must_use]
    pub fn resolving(self, resolver: Resolver) -> Self {
        Self { resolver, ..self }
    }

    /// With what is used of grants counted by that.
    #[must_use]
    pub fn counting(self, meter: ByteMeter) -> Self {
        Self { meter: Mutex::new(meter), ..self }
    }

    /// With flows of UDP that end after these times.
    #[must_use]
    pub fn ending(self, times: UdpTimes) -> Self {
        Self { times, ..self }
    }
}

/// Serves tunnels on that node for as long as what it returns is kept. The node accepts while a [`serve`](potluck_net::serve) runs on it.
pub fn expose(node: &Node, exposing: Exposing) -> JoinSet<()> {
    let (sender, mut tunnels) = mpsc::channel(1);
    node.take_tunnels(Tunnels::new(sender));
    let exposing = Arc::new(exposing);
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut attended = JoinSet::new();
        loop {
            tokio::select! {
                tunnel = tunnels.recv() => {
                    let Some(tunnel) = tunnel else { return };
                    attended.spawn(attend(exposing.clone(), tunnel));
                }
                Some(_) = attended.join_next(), if !attended.is_empty() => {}
            }
        }
    });
    serving
}

/// One member's connection until it ends, and all that came by it: each service is told that what it has is not all.
async fn attend(exposing: Arc<Exposing>, tunnel: Tunnel) {
    let (flows, mut streams) = (Flows::default(), JoinSet::new());
    loop {
        tokio::select! {
            stream = tunnel.accept() => {
                let Some(halves) = stream else { break };
                streams.spawn(stream_of(exposing.clone(), tunnel.clone(), flows.clone(), halves));
            }
            datagram = tunnel.read_datagram() => {
                let Some(datagram) = datagram else { break };
                flows.deliver(&datagram);
            }
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
        }
    }
    while streams.join_next().await.is_some() {}
}

async fn stream_of(
    exposing: Arc<Exposing>,
    tunnel: Tunnel,
    flows: Flows,
    (mut send, mut recv): (SendStream, RecvStream),
) {
    let peer = tunnel.peer();
    let dial = match timeout(FRAME_MAX, frame::read(peer, &mut recv)).await {
        Ok(Ok(TunnelFrame::Dial(dial))) => dial,
        Ok(Ok(TunnelFrame::Call(call))) => {
            let toll = Metered { exposing: exposing.clone(), member: tunnel.member().clone() };
            let room = exposing.room(peer);
            return apps::answer(&exposing.apps, &tunnel, call, (send, recv), toll, room).await;
        }
        Ok(Ok(other)) => return debug!(peer = %peer.short(), got = other.kind(), "a stream began with no dial"),
        Ok(Err(error)) => return debug!(peer = %peer.short(), %error, "a stream did not begin"),
        Err(_) => return debug!(peer = %peer.short(), "a stream did not begin in time"),
    };
    let service = dial.service;
    let reached = match exposing.room(peer) {
        Some(room) => reach(&tunnel, dial, &exposing.exposed, &exposing.resolver).await.map(|reached| (reached, room)),
        None => Err(NotReached::Busy),
    };
    let answer = match &reached {
        Ok(_) => TunnelFrame::Opened,
        Err(why) => TunnelFrame::NotReached(*why),
    };
    if !matches!(timeout(FRAME_MAX, frame::write(peer, &mut send, &answer)).await, Ok(Ok(()))) {
        return;
    }
    let toll = Metered { exposing: exposing.clone(), member: tunnel.member().clone() };
    match reached {
        Ok((Reached::Tcp(socket), _room)) => {
            let bytes = copy(socket, send, recv, toll).await;
            debug!(peer = %peer.short(), ?service, bytes, "a connection has ended");
        }
        Ok((Reached::Udp(socket), _room)) => {
            let flow = flows.begin(tunnel, send, recv);
            let idle = exposing.times.idle(service);
            carry(socket, flow, idle, toll).await;
        }
        Ok((Reached::Echo, _)) | Err(_) => {
            let _ = send.finish();
            let _ = timeout(FRAME_MAX, send.stopped()).await;
        }
    }
}

/// Packets both ways, until none has come for so long.
async fn carry(socket: UdpSocket, mut flow: Flow, idle: Duration, toll: Metered) {
    let mut packet = vec![0; PACKET_BYTES];
    let mut until = Instant::now() + idle;
    loop {
        tokio::select! {
            came = flow.recv() => {
                let Some(came) = came else { return };
                if !toll.pay(came.len()) {
                    return;
                }
                // A port where nobody listens now may be listened at later: as UDP has it, the packet is lost.
                let _ = socket.send(&came).await;
            }
            read = socket.recv(&mut packet) => if let Ok(len) = read
                && (!toll.pay(len) || !flow.send(&packet[..len]).await)
            {
                return;
            },
            () = sleep_until(until) => return,
        }
        until = Instant::now() + idle;
    }
}

impl Exposing {
    /// Room for one more stream of that member.
    fn room(self: &Arc<Self>, peer: PeerId) -> Option<Room> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = streams.entry(peer).or_default();
        if *taken >= MEMBER_STREAMS_MAX {
            info!(peer = %peer.short(), max = MEMBER_STREAMS_MAX, "a member has too many connections through this peer");
            return None;
        }
        *taken += 1;
        Some(Room { exposing: self.clone(), peer })
    }
}

/// One stream's place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    exposing: Arc<Exposing>,
    peer: PeerId,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut streams = self.exposing.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = streams.get_mut(&self.peer) {
            *taken -= 1;
            if *taken == 0 {
                streams.remove(&self.peer);
            }
        }
    }
}

/// What a member's grant says of bytes a day.
#[derive(Debug)]
pub(crate) struct Metered {
    exposing: Arc<Exposing>,
    member: Member,
}

impl Toll for Metered {
    fn pay(&self, bytes: usize) -> bool {
        let scope = self.member.chain().scope();
        if scope.byte_budgets().is_empty() {
            return true;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut meter = self.exposing.meter.lock().unwrap_or_else(PoisonError::into_inner);
        match meter.charge(scope, bytes as u64, now) {
            Ok(()) => true,
            Err(error) => {
                info!(peer = %self.member.peer().short(), %error, "a connection is ended");
                false
            }
        }
    }
}
