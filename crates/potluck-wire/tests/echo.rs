//! Echoes, as datagrams carry them.
#![allow(clippy::unwrap_used, reason = "tests")]

use potluck_wire::{ECHO_HEADER_BYTES_MAX, decode_echo, encode_echo};
use proptest::prelude::*;

#[test]
fn the_bytes_are_those_of_the_document() {
    assert_eq!(encode_echo(4, 300, b"hi"), [4, 0xac, 2, b'h', b'i']);
    // The last numbers that QUIC has.
    let last = (1 << 62) - 1;
    assert!(encode_echo(last, last, b"").len() <= ECHO_HEADER_BYTES_MAX);
}

#[test]
fn what_is_no_echo_is_none() {
    let endless = [0xff; 32];
    for bad in [&b""[..], b"\x04", b"\x04\xac", b"\x84\0\x01", &endless] {
        assert_eq!(decode_echo(bad), None, "{bad:?}");
    }
}

proptest! {
    #[test]
    fn an_echo_comes_back_as_it_went(stream in 0..1_u64 << 62, begin in 0..1_u64 << 62, bytes: Vec<u8>) {
        let datagram = encode_echo(stream, begin, &bytes);
        let (of, at, header) = decode_echo(&datagram).unwrap();
        prop_assert_eq!((of, at, &datagram[header..]), (stream, begin, &bytes[..]));
    }

    #[test]
    fn any_bytes_are_an_echo_of_one_encoding_or_none(datagram: Vec<u8>) {
        if let Some((stream, begin, header)) = decode_echo(&datagram) {
            prop_assert_eq!(encode_echo(stream, begin, &datagram[header..]), datagram);
        }
    }
}
