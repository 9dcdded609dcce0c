//! The frames of tunnels: what is written is read, what is pinned stays, and hostile bytes are refused.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../fuzz/checks/tunnel.rs"]
mod check;

use potluck_wire::{
    Call, Dial, HOST_BYTES_MAX, Host, MESSAGE_BYTES_MAX, NotReached, PACKET_BYTES_MAX, Service, TOPIC_BYTES_MAX,
    TUNNEL_FRAME_BYTES_MAX, TunnelFrame, Way, WireError, decode_datagram, encode_datagram, encode_packet,
    packet_length,
};
use proptest::prelude::*;

fn encoded(frame: &TunnelFrame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

/// As another implementation would write them.
#[test]
fn the_bytes_are_those_that_the_document_shows() {
    let dial = |service, host| encoded(&TunnelFrame::Dial(Dial { service, host }));
    assert_eq!(dial(Service::Tcp(5432), Host::Own), [5, 0, 0, 0, 0xb8, 0x2a, 0]);
    assert_eq!(dial(Service::Udp(53), Host::V4([10, 0, 0, 1])), [8, 0, 0, 1, 53, 1, 10, 0, 0, 1]);
    assert_eq!(dial(Service::Tcp(22), Host::Name("db.lan".into())), *b"\x0b\0\0\0\x16\x03\x06db.lan");
    assert_eq!(dial(Service::Echo, Host::V6([7; 16]))[..5], [19, 0, 0, 2, 2]);
    assert_eq!(encoded(&TunnelFrame::Opened), [1, 0, 1]);
    let reasons = [
        NotReached::NotAllowed,
        NotReached::NotExposed,
        NotReached::NoName,
        NotReached::NoRoute,
        NotReached::Refused,
        NotReached::Late,
        NotReached::Busy,
        NotReached::Spent,
    ];
    for (number, reason) in (0..).zip(reasons) {
        assert_eq!(encoded(&TunnelFrame::NotReached(reason)), [2, 0, 2, number]);
    }
    let call = |way| encoded(&TunnelFrame::Call(Call { topic: "news".into(), way }));
    assert_eq!(call(Way::Stream), *b"\x07\0\x03\x04news\x01");
    let message = [&b"\x19\0\x03\x04news\0"[..], &[7; 16], &[0xac, 2]].concat();
    assert_eq!(call(Way::Message { id: [7; 16], bytes: 300 }), message);
    assert_eq!(encoded(&TunnelFrame::Taken), [1, 0, 4]);
    assert_eq!(encoded(&TunnelFrame::Reply(300)), [3, 0, 5, 0xac, 2]);
    assert_eq!(encode_datagram(300, b"hi"), [0xac, 2, b'h', b'i']);
}

#[test]
fn what_is_too_long_is_refused_before_it_is_read() {
    let max = TUNNEL_FRAME_BYTES_MAX;
    assert_eq!(TunnelFrame::length((max as u16).to_le_bytes()), Ok(max));
    let len = max + 1;
    assert_eq!(TunnelFrame::length((len as u16).to_le_bytes()), Err(WireError::TooLong { len, max }));
    let name =
        |len: usize| TunnelFrame::Dial(Dial { service: Service::Udp(u16::MAX), host: Host::Name("x".repeat(len)) });
    let longest = encoded(&name(HOST_BYTES_MAX));
    assert!(longest.len() - 2 <= max, "the longest name fits");
    assert!(TunnelFrame::decode(&longest[2..]).is_ok());
    for len in [0, HOST_BYTES_MAX + 1] {
        assert!(TunnelFrame::decode(&encoded(&name(len))[2..]).is_err(), "{len}");
    }
    for bad in ["a b", "a\0", "ü"] {
        let frame = TunnelFrame::Dial(Dial { service: Service::Echo, host: Host::Name(bad.into()) });
        assert!(TunnelFrame::decode(&encoded(&frame)[2..]).is_err(), "{bad:?}");
    }
    let call = |topic: &str, bytes: usize| {
        let way = Way::Message { id: [0xff; 16], bytes: bytes as u32 };
        encoded(&TunnelFrame::Call(Call { topic: topic.into(), way })).split_off(2)
    };
    let longest = call(&"x".repeat(TOPIC_BYTES_MAX), MESSAGE_BYTES_MAX);
    assert!(longest.len() <= max && TunnelFrame::decode(&longest).is_ok());
    for (topic, bytes) in [("x".repeat(TOPIC_BYTES_MAX + 1), 0), (String::new(), 0), ("a b".into(), 0), ("ü".into(), 0)]
    {
        assert!(TunnelFrame::decode(&call(&topic, bytes)).is_err(), "{topic}");
    }
    let (len, max) = (MESSAGE_BYTES_MAX + 1, MESSAGE_BYTES_MAX);
    let refused = Err(WireError::Bound { what: "message", len, max });
    assert_eq!(TunnelFrame::decode(&call("x", len)), refused);
    assert_eq!(TunnelFrame::decode(&encoded(&TunnelFrame::Reply(len as u32))[2..]), refused);
    assert!(packet_length((PACKET_BYTES_MAX as u16 + 1).to_le_bytes()).is_err());
    assert!(!encode_packet(&vec![0; PACKET_BYTES_MAX + 1], &mut Vec::new()));
}

fn host() -> impl Strategy<Value = Host> {
    prop_oneof![
        Just(Host::Own),
        any::<[u8; 4]>().prop_map(Host::V4),
        any::<[u8; 16]>().prop_map(Host::V6),
        "[a-z0-9.-]{1,253}".prop_map(Host::Name),
    ]
}

fn service() -> impl Strategy<Value = Service> {
    prop_oneof![any::<u16>().prop_map(Service::Tcp), any::<u16>().prop_map(Service::Udp), Just(Service::Echo)]
}

fn call() -> impl Strategy<Value = TunnelFrame> {
    let message = (any::<[u8; 16]>(), 0..=MESSAGE_BYTES_MAX as u32);
    let way = prop_oneof![message.prop_map(|(id, bytes)| Way::Message { id, bytes }), Just(Way::Stream)];
    ("[!-~]{1,128}", way).prop_map(|(topic, way)| TunnelFrame::Call(Call { topic, way }))
}

proptest! {
    #[test]
    fn a_call_that_is_written_is_read(call in call(), at in any::<usize>(), bit in 0_u8..8) {
        let mut body = encoded(&call).split_off(2);
        prop_assert_eq!(TunnelFrame::decode(&body), Ok(call));
        check::check(&body);
        let at = at % body.len();
        body[at] ^= 1 << bit;
        check::check(&body);
    }

    #[test]
    fn what_is_written_is_read(service in service(), host in host(), flow in 0_u64..1 << 60, bytes in any::<Vec<u8>>()) {
        let frame = TunnelFrame::Dial(Dial { service, host });
        let body = encoded(&frame).split_off(2);
        prop_assert_eq!(TunnelFrame::decode(&body), Ok(frame));
        check::check(&body);
        let datagram = encode_datagram(flow, &bytes);
        let (read, begin) = decode_datagram(&datagram).unwrap();
        prop_assert_eq!((read, &datagram[begin..]), (flow, &bytes[..]));
    }

    #[test]
    fn hostile_bytes_have_no_twin(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        check::check(&bytes);
    }

    #[test]
    fn a_frame_that_was_changed_has_no_twin(service in service(), host in host(), at in any::<usize>(), bit in 0_u8..8) {
        let mut body = encoded(&TunnelFrame::Dial(Dial { service, host })).split_off(2);
        let at = at % body.len();
        body[at] ^= 1 << bit;
        check::check(&body);
        body.truncate(at);
        check::check(&body);
    }
}
