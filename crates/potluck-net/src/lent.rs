//! Asking for models that others lend by an upstream.

use std::time::Duration;

use bytes::Bytes;
use iroh::endpoint::{RecvStream, SendStream, VarInt};
use potluck_core::{Endpoint, PeerId};
use potluck_wire::{
    Ask, CONTROL_BYTES_MAX, FEATURE_PADDING, Failure, FailureCode, Frame, FrameReader, Head, LENDERS_MAX, Lender,
    PART_FRAME_BYTES_MAX, PeerAddress, Upstreams,
};
use tokio::time::timeout;

use crate::{Lending, NetError, Node, greet::read_next, lending::part, stream::Halves};

/// Longest wait for an answer to begin: an upstream that does not stream answers when all is done. It gives up a little sooner.
const HEAD_PATIENCE: Duration = Duration::from_secs(630);

/// Longest wait for more of an answer that has begun. The same.
const PART_PATIENCE: Duration = Duration::from_secs(330);

/// Bytes of a request that are written at a time.
const ASK_PIECE_BYTES: usize = 128 << 10;

/// Pages of lenders that are read of one peer.
const PAGES_MAX: usize = 32;

/// An upstream's answer, as far as it has come.
#[derive(Debug)]
pub struct LentAnswer {
    /// How it begins.
    pub head: Head,
    /// The rest.
    pub body: LentBody,
}

/// The body of an answer. Dropped before its end, it stops the upstream.
#[derive(Debug)]
pub struct LentBody {
    peer: PeerId,
    /// Open for as long as the answer is wanted.
    send: SendStream,
    recv: RecvStream,
    reader: FrameReader,
}

impl Drop for LentBody {
    fn drop(&mut self) {
        let code = VarInt::from_u32(FailureCode::Cancelled.number());
        // Either side may have ended already.
        let _ = self.send.reset(code);
        let _ = self.recv.stop(code);
    }
}

impl LentBody {
    /// The next piece; none at the end.
    ///
    /// # Errors
    /// `Failed` where the upstream failed; `Lost` where the connection did, or nothing came for minutes.
    pub async fn next(&mut self) -> Result<Option<Bytes>, NetError> {
        match self.frame(PART_PATIENCE).await? {
            Some(Frame::Part(bytes) | Frame::PaddedPart(bytes)) => Ok(Some(bytes.into())),
            Some(other) => Err(self.unexpected(&other, "part")),
            None => Ok(None),
        }
    }

    async fn frame(&mut self, patience: Duration) -> Result<Option<Frame>, NetError> {
        let peer = self.peer;
        let lost = |reason: String| NetError::Lost { peer, reason };
        loop {
            match self.reader.next().map_err(|error| NetError::Protocol { peer, error })? {
                Some(Frame::Failed(failure)) => return Err(NetError::Failed { peer, failure }),
                Some(frame) => return Ok(Some(frame)),
                None => {}
            }
            let silent = |_| lost(format!("nothing came for {} s", patience.as_secs()));
            match timeout(patience, self.recv.read_chunk(PART_FRAME_BYTES_MAX)).await.map_err(silent)? {
                Ok(Some(bytes)) => self.reader.push(&bytes),
                Ok(None) => {
                    self.reader.finish().map_err(|error| NetError::Protocol { peer, error })?;
                    return Ok(None);
                }
                Err(error) => return Err(lost(error.to_string())),
            }
        }
    }

    fn unexpected(&self, got: &Frame, expected: &'static str) -> NetError {
        NetError::Unexpected { peer: self.peer, got: got.kind(), expected }
    }
}

impl Node {
    /// Lends by an upstream from now on. The first one counts.
    pub fn lend(&self, lending: Lending) {
        let _ = self.lending.set(lending);
    }

    /// Tells a member that this peer lends by an upstream, and where it is.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `Lost` where it does not answer in time.
    pub async fn tell_lending(&self, to: &PeerAddress) -> Result<(), NetError> {
        let lender = Lender { address: self.address(), grant: self.identity.grant.clone() };
        self.in_time(to, self.pages_of_lenders(to, Frame::Lend(lender))).await.map(drop)
    }

    /// Asks a member what it lends by an upstream, and who else does. Of the others nothing is known yet: their grants are to
    /// be checked.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `Lost` where it does not answer in time.
    pub async fn upstreams(&self, from: &PeerAddress) -> Result<Upstreams, NetError> {
        self.in_time(from, self.pages_of_lenders(from, Frame::ListUpstreams)).await
    }

    async fn pages_of_lenders(&self, of: &PeerAddress, question: Frame) -> Result<Upstreams, NetError> {
        let mut all = Upstreams::default();
        let mut reader = FrameReader::new(CONTROL_BYTES_MAX);
        let mut recv = self.ask(of, question).await?;
        // A peer that never ends is cut short.
        for _ in 0..PAGES_MAX {
            match read_next(of.peer, &mut recv, &mut reader).await? {
                Frame::Upstreams(Upstreams { own, others }) => {
                    all.own = all.own.or(own);
                    let last = others.len() < LENDERS_MAX;
                    all.others.extend(others);
                    if last {
                        break;
                    }
                }
                Frame::Failed(failure) => return Err(NetError::Failed { peer: of.peer, failure }),
                other => return Err(NetError::Unexpected { peer: of.peer, got: other.kind(), expected: "upstreams" }),
            }
        }
        Ok(all)
    }

    /// Asks a member's upstream; returns when its answer begins. Dropped, it stops the upstream. `pad`: in pieces of a few sizes,
    /// and answered so, where the member knows how.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `Failed` where the peer is busy or its upstream does not answer; `Lost` where it falls silent.
    pub async fn ask_upstream(
        &self,
        of: &PeerAddress,
        endpoint: Endpoint,
        body: &[u8],
        pad: bool,
    ) -> Result<LentAnswer, NetError> {
        let peer = of.peer;
        let link = self.connect(of).await?;
        if pad && link.welcome.features & FEATURE_PADDING == 0 {
            let detail = "it does not know how to pad: leave --pad out, or have its Potluck updated";
            return Err(NetError::Failed { peer, failure: Failure::new(FailureCode::Version, detail) });
        }
        let Halves { send, recv, .. } = link.open_stream(self).await?;
        let mut answer = LentBody { peer, send, recv, reader: FrameReader::new(PART_FRAME_BYTES_MAX) };
        let bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
        // Whoever refuses it reads no more of it, and says why.
        let ask = Ask { endpoint, bytes };
        let unwritten = write_ask(&mut answer.send, ask, (body, pad), self.deadlines.stall).await.err();
        let patience = if unwritten.is_some() { self.deadlines.stall } else { HEAD_PATIENCE };
        let lost = |reason| Err(NetError::Lost { peer, reason });
        match (answer.frame(patience).await, unwritten) {
            (Ok(Some(Frame::Head(head))), _) => Ok(LentAnswer { head, body: answer }),
            (Ok(Some(other)), _) => Err(answer.unexpected(&other, "head")),
            (Err(failed @ NetError::Failed { .. }), _) => Err(failed),
            (_, Some(reason)) => lost(reason),
            (Ok(None), None) => lost("the stream ended".into()),
            (Err(error), None) => Err(error),
        }
    }
}

/// Writes a request, a part at a time: the rest of the stream stays open.
async fn write_ask(send: &mut SendStream, ask: Ask, (body, pad): (&[u8], bool), stall: Duration) -> Result<(), String> {
    let mut bytes = Vec::new();
    Frame::Ask(ask).encode(&mut bytes);
    let mut parts = body.chunks(ASK_PIECE_BYTES);
    loop {
        // A request without a body has no part, and is the upstream's to refuse.
        let part = parts.next().map(|piece| part(piece, pad).encode(&mut bytes));
        if bytes.is_empty() {
            return Ok(());
        }
        let written = timeout(stall, send.write_all(&bytes)).await;
        let late = |_| format!("it took nothing for {} s", stall.as_secs_f32());
        written.map_err(late)?.map_err(|error| error.to_string())?;
        bytes.clear();
        if part.is_none() {
            return Ok(());
        }
    }
}
