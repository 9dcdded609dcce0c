//! An offer from anybody: verified or refused, never a panic.

use potluck_wire::Frame;

/// The content of an `Announce` frame.
pub(crate) fn check(bytes: &[u8]) {
    const ANNOUNCE: u8 = 14;
    let frame: Vec<u8> = [&[ANNOUNCE], bytes].concat();
    if let Ok(Frame::Announce(offer)) = Frame::decode(&frame) {
        for now in [0, 1_000, 1_800_000_000, u64::MAX] {
            if let Ok(offer) = offer.verify(now) {
                assert!(offer.expires >= now);
            }
        }
    }
}
