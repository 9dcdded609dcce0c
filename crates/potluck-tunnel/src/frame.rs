//! Frames and packets on a tunnel's streams.

use bytes::{Buf, Bytes, BytesMut};
use potluck_core::PeerId;
use potluck_net::{ReadExactError, RecvStream, SendStream};
use potluck_wire::{LENGTH_BYTES, PACKET_BYTES_MAX, TunnelFrame, WireError, packet_length};

use crate::TunnelError;

/// Writes a frame.
pub(crate) async fn write(peer: PeerId, send: &mut SendStream, frame: &TunnelFrame) -> Result<(), TunnelError> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    send.write_all(&bytes).await.map_err(|_| TunnelError::Lost(peer))
}

/// Reads a frame, and nothing of what follows it. Not to be given up in the middle: what was read of it is lost then.
pub(crate) async fn read(peer: PeerId, recv: &mut RecvStream) -> Result<TunnelFrame, TunnelError> {
    let mut announced = [0; LENGTH_BYTES];
    recv.read_exact(&mut announced).await.map_err(|error| ended(peer, error))?;
    read_body(peer, recv, announced).await
}

/// The same, where the stream may have ended before it: none then.
pub(crate) async fn read_if_any(peer: PeerId, recv: &mut RecvStream) -> Result<Option<TunnelFrame>, TunnelError> {
    let mut announced = [0; LENGTH_BYTES];
    match recv.read_exact(&mut announced).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(error) => return Err(ended(peer, error)),
    }
    read_body(peer, recv, announced).await.map(Some)
}

async fn read_body(
    peer: PeerId,
    recv: &mut RecvStream,
    announced: [u8; LENGTH_BYTES],
) -> Result<TunnelFrame, TunnelError> {
    let protocol = |error| TunnelError::Protocol { peer, error };
    let mut body = vec![0; TunnelFrame::length(announced).map_err(protocol)?];
    recv.read_exact(&mut body).await.map_err(|error| ended(peer, error))?;
    TunnelFrame::decode(&body).map_err(protocol)
}

fn ended(peer: PeerId, error: ReadExactError) -> TunnelError {
    match error {
        ReadExactError::FinishedEarly(_) => TunnelError::Protocol { peer, error: WireError::Truncated { missing: 1 } },
        ReadExactError::ReadError(_) => TunnelError::Lost(peer),
    }
}

/// The packets of a stream: those that fit no datagram.
#[derive(Debug)]
pub(crate) struct Packets {
    recv: RecvStream,
    held: BytesMut,
}

impl Packets {
    pub(crate) fn new(recv: RecvStream) -> Self {
        Self { recv, held: BytesMut::new() }
    }

    /// The next packet; none once the stream has ended, or is none. It may be given up at any time.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(announced) = self.held.first_chunk::<LENGTH_BYTES>() {
                let len = packet_length(*announced).ok()?;
                if self.held.len() >= LENGTH_BYTES + len {
                    self.held.advance(LENGTH_BYTES);
                    return Some(self.held.split_to(len).freeze());
                }
            }
            let chunk = self.recv.read_chunk(PACKET_BYTES_MAX).await.ok()??;
            self.held.extend_from_slice(&chunk);
        }
    }
}
