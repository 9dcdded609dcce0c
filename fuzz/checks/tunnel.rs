//! A tunnel's frame that decodes has one encoding; so has a datagram's head; a packet's length is bounded.

use potluck_wire::{PACKET_BYTES_MAX, TunnelFrame, decode_datagram, encode_datagram, packet_length};

pub(crate) fn check(bytes: &[u8]) {
    if let Ok(frame) = TunnelFrame::decode(bytes) {
        let mut again = Vec::new();
        frame.encode(&mut again);
        assert_eq!(&again[2..], bytes, "a {} frame has a twin", frame.kind());
    }
    if let Some((flow, begin)) = decode_datagram(bytes) {
        assert_eq!(encode_datagram(flow, &bytes[begin..]), bytes, "a datagram has a twin");
    }
    if let Some(length) = bytes.first_chunk().and_then(|announced| packet_length(*announced).ok()) {
        assert!(length <= PACKET_BYTES_MAX);
    }
}
