//! Datagrams of a tunnel's connection: each given to the flow that it names.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use potluck_net::{RecvStream, SendStream, Tunnel};
use potluck_wire::{decode_datagram, encode_datagram, encode_packet};
use tokio::{sync::mpsc, time::timeout};

use crate::frame::Packets;

/// Packets of one flow that wait for whoever takes them. The next one is dropped, as UDP has it.
const WAITING_MAX: usize = 256;

/// Longest that a packet which fits no datagram may wait for its stream. Then the flow ends.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// The flows of one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flows(Arc<Mutex<HashMap<u64, mpsc::Sender<Bytes>>>>);

/// One flow's way through a tunnel. It ends with this, and with the other side's.
#[derive(Debug)]
pub(crate) struct Flow {
    tunnel: Tunnel,
    flows: Flows,
    id: u64,
    send: SendStream,
    packets: Packets,
    datagrams: mpsc::Receiver<Bytes>,
}

impl Flows {
    /// Gives a datagram to its flow. Of a flow that is not known, or does not keep up, it is dropped.
    pub(crate) fn deliver(&self, datagram: &Bytes) {
        let Some((id, begin)) = decode_datagram(datagram) else { return };
        let flows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flow) = flows.get(&id) {
            let _ = flow.try_send(datagram.slice(begin..));
        }
    }

    /// A flow over that stream, whose number is the stream's.
    pub(crate) fn begin(&self, tunnel: Tunnel, send: SendStream, recv: RecvStream) -> Flow {
        let id = send.id().index();
        let (sender, datagrams) = mpsc::channel(WAITING_MAX);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        Flow { tunnel, flows: self.clone(), id, send, packets: Packets::new(recv), datagrams }
    }
}

impl Flow {
    /// Sends a packet: as a datagram where the path takes one of its size, else on the stream. False once the flow has ended.
    pub(crate) async fn send(&mut self, packet: &[u8]) -> bool {
        if self.tunnel.send_datagram(encode_datagram(self.id, packet)) {
            return true;
        }
        let mut bytes = Vec::with_capacity(packet.len() + potluck_wire::LENGTH_BYTES);
        let fits = encode_packet(packet, &mut bytes);
        fits && matches!(timeout(WRITE_MAX, self.send.write_all(&bytes)).await, Ok(Ok(())))
    }

    /// The next packet; none once the flow has ended. It may be given up at any time.
    pub(crate) async fn recv(&mut self) -> Option<Bytes> {
        tokio::select! {
            biased;
            packet = self.datagrams.recv() => packet,
            packet = self.packets.next() => packet,
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.flows.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        let _ = self.send.finish();
    }
}
