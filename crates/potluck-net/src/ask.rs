//! Questions that a member asks outside any session: which offers do you know, and here is mine.

use iroh::endpoint::RecvStream;
use potluck_core::SignedOffer;
use potluck_wire::{CONTROL_BYTES_MAX, Frame, FrameReader, OFFERS_MAX, PeerAddress};
use tokio::time::timeout;

use crate::{
    NetError, Node, OFFERS_KEPT_MAX,
    greet::{read_next, write_last},
    stream::Halves,
};

impl Node {
    /// Asks a peer for the offers that it knows.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `Lost` where it does not answer in time.
    pub async fn offers(&self, from: &PeerAddress) -> Result<Vec<SignedOffer>, NetError> {
        self.in_time(from, self.all_pages(from)).await
    }

    async fn all_pages(&self, from: &PeerAddress) -> Result<Vec<SignedOffer>, NetError> {
        let mut offers = Vec::new();
        let mut reader = FrameReader::new(CONTROL_BYTES_MAX);
        let mut stream = self.ask(from, Frame::ListOffers).await?;
        // Full pages, and a last one that is not full. A peer that never ends is cut short at what a directory holds.
        while offers.len() < OFFERS_KEPT_MAX {
            let page = self.page(from, &mut stream, &mut reader).await?;
            let last = page.len() < OFFERS_MAX;
            offers.extend(page);
            if last {
                break;
            }
        }
        Ok(offers)
    }

    /// Tells a peer of an offer.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `Lost` where it does not answer in time.
    pub async fn announce(&self, to: &PeerAddress, offer: SignedOffer) -> Result<(), NetError> {
        let told = async {
            let mut stream = self.ask(to, Frame::Announce(offer)).await?;
            self.page(to, &mut stream, &mut FrameReader::new(CONTROL_BYTES_MAX)).await.map(|_| ())
        };
        self.in_time(to, told).await
    }

    /// One deadline around a question and its whole answer: a peer that takes no bytes holds nobody up.
    pub(crate) async fn in_time<T>(
        &self,
        peer: &PeerAddress,
        asking: impl Future<Output = Result<T, NetError>>,
    ) -> Result<T, NetError> {
        let patience = self.deadlines.connect + 2 * self.deadlines.greet;
        timeout(patience, asking).await.unwrap_or_else(|_| {
            let reason = format!("no answer within {} s", patience.as_secs_f32());
            Err(NetError::Lost { peer: peer.peer, reason })
        })
    }

    pub(crate) async fn ask(&self, peer: &PeerAddress, question: Frame) -> Result<RecvStream, NetError> {
        let link = self.connect(peer).await?;
        let Halves { mut send, recv, .. } = link.open_stream(self).await?;
        let lost = |reason: String| NetError::Lost { peer: peer.peer, reason };
        write_last(&mut send, &question).await.map_err(|error| lost(error.to_string()))?;
        Ok(recv)
    }

    async fn page(
        &self,
        from: &PeerAddress,
        stream: &mut RecvStream,
        reader: &mut FrameReader,
    ) -> Result<Vec<SignedOffer>, NetError> {
        let peer = from.peer;
        let seconds = self.deadlines.greet.as_secs_f32();
        let late = |_| NetError::Lost { peer, reason: format!("no answer within {seconds} s") };
        match timeout(self.deadlines.greet, read_next(peer, stream, reader)).await.map_err(late)?? {
            Frame::Offers(page) => Ok(page),
            other => Err(NetError::Unexpected { peer, got: other.kind(), expected: "offers" }),
        }
    }
}
