//! A tunnel's frame that decodes has one encoding; so has a datagram's head, and an echo's; a packet's length is bounded, and so is a message's.

use potluck_wire::{
    Call, MESSAGE_BYTES_MAX, PACKET_BYTES_MAX, TunnelFrame, Way, decode_datagram, decode_echo, encode_datagram,
    encode_echo, is_topic, packet_length,
};

pub(crate) fn check(bytes: &[u8]) {
    if let Ok(frame) = TunnelFrame::decode(bytes) {
        let mut again = Vec::new();
        frame.encode(&mut again);
        assert_eq!(&again[2..], bytes, "a {} frame has a twin", frame.kind());
        if let TunnelFrame::Call(Call { topic, .. }) = &frame {
            assert!(is_topic(topic), "{topic:?}");
        }
        if let TunnelFrame::Call(Call { way: Way::Message { bytes, .. }, .. }) | TunnelFrame::Reply(bytes) = frame {
            assert!(bytes as usize <= MESSAGE_BYTES_MAX);
        }
    }
    if let Some((flow, begin)) = decode_datagram(bytes) {
        assert_eq!(encode_datagram(flow, &bytes[begin..]), bytes, "a datagram has a twin");
    }
    if let Some((stream, begin, at)) = decode_echo(bytes) {
        assert_eq!(encode_echo(stream, begin, &bytes[at..]), bytes, "an echo has a twin");
    }
    if let Some(length) = bytes.first_chunk().and_then(|announced| packet_length(*announced).ok()) {
        assert!(length <= PACKET_BYTES_MAX);
    }
}
