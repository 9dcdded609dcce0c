//! What members sign and relays and gateways are shown: nobody can make a revocation, an order, a pass or a key that counts.

use potluck_core::PeerId;
use potluck_grant::{Gate, Root};
use potluck_wire::Frame;

const NOW: u64 = 1_800_000_000;

/// The content of an `Order` or of a `Revocations` frame, or what a relay or a gateway is shown as text.
pub(crate) fn check(bytes: &[u8]) {
    const ORDER: u8 = 24;
    const REVOCATIONS: u8 = 33;
    let root = Root::from_bytes(&[7; 32]);
    let (gate, stranger) = (Gate::new(root.public()), PeerId::from_bytes([0xee; 32]));
    let frame = |kind: u8| Frame::decode(&[&[kind], bytes].concat());
    if let Ok(Frame::Order(order)) = frame(ORDER) {
        assert!(order.verify(root.key().peer_id(), stranger, NOW).is_err(), "an order in the root's name");
    }
    if let Ok(Frame::Revocations(revocations)) = frame(REVOCATIONS) {
        for revocation in revocations {
            assert!(gate.revoke(revocation).is_err(), "a revocation of nobody's");
        }
        assert!(gate.revocations().is_empty());
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(gate.check_relayed(text, stranger, NOW).is_err(), "a relay lets a stranger in");
        assert!(gate.check_api_key(text, NOW).is_err(), "a gateway lets a stranger in");
    }
}
