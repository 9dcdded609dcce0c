//! Messages out, and streams that are opened.

use std::time::Duration;

use bytes::Bytes;
use potluck_core::PeerId;
use potluck_net::{NetError, RecvStream, SendStream, Tunnel};
use potluck_wire::{Call, Dial, MESSAGE_BYTES_MAX, MessageId, NotReached, TunnelFrame, Way, is_topic};
use tokio::time::{Instant, sleep, timeout_at};

use super::{PeerStream, messages::read_body};
use crate::{
    Far, TunnelError,
    far::{AGAIN, Opened},
    frame,
};

/// A message has arrived: its application has it.
#[derive(Debug)]
pub struct Receipt {
    peer: PeerId,
    send: SendStream,
    recv: RecvStream,
    until: Instant,
    seconds: f32,
    _tunnel: Tunnel,
}

impl Far {
    /// Sends a message to the application that listens for that topic, and waits until it has it: `within` that time,
    /// over new connections where one is lost. `id` is random, and no other message's.
    ///
    /// # Errors
    /// `Topic`, `TooLong`; `NotReached`, as the peer says; `Away`, `Net`, `Protocol`; `Unconfirmed` where it is not
    /// known whether it arrived.
    pub async fn send_message(
        &self,
        topic: &str,
        body: &Bytes,
        id: MessageId,
        within: Duration,
    ) -> Result<Receipt, TunnelError> {
        if !is_topic(topic) {
            return Err(TunnelError::Topic);
        }
        if body.len() > MESSAGE_BYTES_MAX {
            return Err(TunnelError::TooLong(body.len()));
        }
        let (peer, until, seconds) = (self.peer(), Instant::now() + within, within.as_secs_f32());
        let unconfirmed = || TunnelError::Unconfirmed { peer, seconds };
        let call = Call { topic: topic.to_owned(), way: Way::Message { id, bytes: body.len() as u32 } };
        let mut sent = false;
        loop {
            let (tunnel, _) = match self.stand(until).await {
                Err(TunnelError::Away { .. }) if sent => return Err(unconfirmed()),
                Err(TunnelError::Away { .. }) => return Err(TunnelError::Away { peer, seconds: within.as_secs() }),
                standing => standing?,
            };
            let again = sent;
            sent = true;
            let answered = timeout_at(until, hand_over(&tunnel, &call, body)).await.map_err(|_| unconfirmed())?;
            match answered {
                Ok((send, recv)) => return Ok(Receipt { peer, send, recv, until, seconds, _tunnel: tunnel }),
                // The one that was sent before waits still, as far as the other side knows.
                Err(TunnelError::NotReached { why: NotReached::Busy, .. }) if again => {}
                // Whatever is said now, that one may have been taken.
                Err(TunnelError::NotReached { .. }) if again => return Err(unconfirmed()),
                Err(TunnelError::Lost(_) | TunnelError::Net(NetError::Lost { .. })) => {
                    if let Some(refused) = tunnel.refused() {
                        return Err(if again { unconfirmed() } else { refused.into() });
                    }
                }
                Err(error) => return Err(error),
            }
            if Instant::now() + AGAIN >= until {
                return Err(unconfirmed());
            }
            sleep(AGAIN).await;
        }
    }

    /// Opens a stream to the application that listens for that topic, once it accepts it.
    ///
    /// # Errors
    /// `Topic`; `NotReached`, as the peer says; `Away`, `Lost`, `Net`, `Protocol`.
    pub async fn open_stream(&self, topic: &str) -> Result<PeerStream, TunnelError> {
        if !is_topic(topic) {
            return Err(TunnelError::Topic);
        }
        let call = Call { topic: topic.to_owned(), way: Way::Stream };
        let opened = self.open_with(&TunnelFrame::Call(call)).await?;
        Ok(stream(topic.to_owned(), opened))
    }

    /// Opens a connection to a service of TCP, as a stream.
    ///
    /// # Errors
    /// `NotReached`, as the peer says; `Away`, `Lost`, `Net`, `Protocol`.
    pub async fn open_service(&self, dial: &Dial) -> Result<PeerStream, TunnelError> {
        let port = dial.service.port().unwrap_or(0);
        Ok(stream(format!("port {port}"), self.open(dial).await?))
    }
}

fn stream(topic: String, opened: Opened) -> PeerStream {
    let (tunnel, send, recv) = opened.into_halves();
    PeerStream::new(topic, tunnel, send, recv)
}

/// One attempt: the message, and that its application has it.
async fn hand_over(tunnel: &Tunnel, call: &Call, body: &Bytes) -> Result<(SendStream, RecvStream), TunnelError> {
    let peer = tunnel.peer();
    let (mut send, mut recv) = tunnel.open().await?;
    frame::write(peer, &mut send, &TunnelFrame::Call(call.clone())).await?;
    // Whoever does not want it says so, and reads no more of it.
    if send.write_all(body).await.is_ok() {
        let _ = send.finish();
    }
    match frame::read(peer, &mut recv).await? {
        TunnelFrame::Taken => Ok((send, recv)),
        TunnelFrame::NotReached(why) => Err(TunnelError::NotReached { peer, why }),
        other => Err(NetError::Unexpected { peer, got: other.kind(), expected: "taken" }.into()),
    }
}

impl Receipt {
    /// Who has it.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// What the application replies, in what is left of the message's time; none where it has taken the message and
    /// replies nothing.
    ///
    /// # Errors
    /// `Unconfirmed` where the time is over; `Lost`, `Protocol`.
    pub async fn reply(mut self) -> Result<Option<Bytes>, TunnelError> {
        let (peer, seconds) = (self.peer, self.seconds);
        let late = |_| TunnelError::Unconfirmed { peer, seconds };
        timeout_at(self.until, read_reply(peer, &mut self.recv)).await.map_err(late)?
    }
}

async fn read_reply(peer: PeerId, recv: &mut RecvStream) -> Result<Option<Bytes>, TunnelError> {
    match frame::read_if_any(peer, recv).await? {
        None => Ok(None),
        Some(TunnelFrame::Reply(bytes)) => {
            read_body(recv, bytes as usize).await.map(Some).ok_or(TunnelError::Lost(peer))
        }
        Some(other) => Err(NetError::Unexpected { peer, got: other.kind(), expected: "reply" }.into()),
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        // The message has arrived; what of it was not read is not wanted.
        let _ = self.recv.stop(super::UNWANTED);
        let _ = self.send.finish();
    }
}
