//! Orders: what the swarm's root, or whoever it lets give them, asks of one peer, signed, once, for a short time.

use serde::{Deserialize, Serialize};

use crate::{LayerRange, ModelId, PeerId, SecretKey};

/// What a peer is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Serve these layers, once the sessions that are open have ended.
    Load {
        /// Of which model.
        model: ModelId,
        /// Which.
        layers: LayerRange,
    },
    /// Serve nothing, once the sessions that are open have ended.
    Unload,
}

/// An order to one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// To whom.
    pub peer: PeerId,
    /// Counts up with each order of this key: an older one is never obeyed after a newer one.
    pub sequence: u64,
    /// UTC seconds after which nobody may obey it.
    pub expires: u64,
    /// What.
    pub action: Action,
}

/// An order and its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedOrder {
    order: Vec<u8>,
    signature: serde_bytes::ByteArray<64>,
}

/// Whoever sent the order: it is not to be obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OrderError {
    /// The bytes are no order.
    #[error("these bytes are no order: {0}")]
    Malformed(String),
    /// It is not signed by whom it should be.
    #[error("the order is not signed by whoever gives it")]
    Signature,
    /// It is for another peer.
    #[error("the order is for {0}")]
    NotForUs(PeerId),
    /// Too old, or for longer than orders may hold. Hint: compare both machines' clocks.
    #[error("the order expires {seconds} s from now; 0 to {max} s do", max = Order::LIFETIME_SECONDS_MAX)]
    Expired {
        /// How far ahead; negative: how long ago.
        seconds: i64,
    },
}

impl Order {
    /// Bytes of an encoded order.
    pub const BYTES_MAX: usize = 256;
    /// Seconds that an order may hold, clocks' difference included.
    pub const LIFETIME_SECONDS_MAX: u64 = 300;
    const CONTEXT: &'static [u8] = b"potluck order 1\0";

    /// Signs the order, with the root's key or with that of whoever may give orders.
    pub fn sign(&self, key: &SecretKey) -> SignedOrder {
        #[expect(clippy::expect_used, reason = "writing to memory fails only where memory ends")]
        let order = postcard::to_stdvec(self).expect("an order encodes");
        let signature = key.sign(&[Self::CONTEXT, &order].concat());
        SignedOrder { order, signature: signature.into() }
    }
}

impl SignedOrder {
    /// The order, if the holder of the key `by` gave it to `peer` and it holds at `now` (UTC seconds). Whether that one may is for the gate to say.
    ///
    /// # Errors
    /// As [`OrderError`] says.
    pub fn verify(&self, by: PeerId, peer: PeerId, now: u64) -> Result<Order, OrderError> {
        if self.order.len() > Order::BYTES_MAX {
            return Err(OrderError::Malformed(format!("{} bytes", self.order.len())));
        }
        if !by.verify(&[Order::CONTEXT, &self.order].concat(), &self.signature) {
            return Err(OrderError::Signature);
        }
        let order: Order = postcard::from_bytes(&self.order).map_err(|e| OrderError::Malformed(e.to_string()))?;
        if order.peer != peer {
            return Err(OrderError::NotForUs(order.peer));
        }
        let seconds = i64::try_from(order.expires).unwrap_or(i64::MAX).saturating_sub_unsigned(now);
        if !(0..=Order::LIFETIME_SECONDS_MAX as i64).contains(&seconds) {
            return Err(OrderError::Expired { seconds });
        }
        Ok(order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_the_root_s_for_one_peer_and_a_short_time() {
        let [root, peer, other] = [1, 2, 3].map(|n| SecretKey::from_bytes(&[n; 32]));
        let action = Action::Load { model: ModelId::from_bytes([7; 32]), layers: LayerRange::new(0, 4).unwrap() };
        let order = Order { peer: peer.peer_id(), sequence: 1, expires: 1_060, action };
        let signed = order.sign(&root);
        let verify = |signed: &SignedOrder, now| signed.verify(root.peer_id(), peer.peer_id(), now);
        assert_eq!(verify(&signed, 1_000), Ok(order));
        assert_eq!(verify(&signed, 1_061), Err(OrderError::Expired { seconds: -1 }));
        assert_eq!(verify(&signed, 700), Err(OrderError::Expired { seconds: 360 }));
        assert_eq!(verify(&order.sign(&other), 1_000), Err(OrderError::Signature));
        let elsewhere = Order { peer: other.peer_id(), ..order }.sign(&root);
        assert_eq!(verify(&elsewhere, 1_000), Err(OrderError::NotForUs(other.peer_id())));
        let mut altered = signed;
        altered.order[40] ^= 1;
        assert_eq!(verify(&altered, 1_000), Err(OrderError::Signature));
    }
}
