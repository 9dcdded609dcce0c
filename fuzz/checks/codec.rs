//! A payload that decodes holds finite values only, and says the same when it is encoded and decoded again; with the `mixed*` codecs,
//! whose massive channels may be others the second time, it can at least be sent on.

use potluck_wire::Codec;

/// The first two bytes are positions and width.
pub(crate) fn check(bytes: &[u8]) {
    let [positions, width, payload @ ..] = bytes else { return };
    let (positions, width) = (usize::from(*positions), usize::from(*width));
    for codec in Codec::ALL {
        let Ok(hidden) = codec.decode(payload, positions, width) else { continue };
        assert_eq!(hidden.len(), positions * width);
        assert!(hidden.iter().all(|value| value.is_finite()), "{codec}");
        let mut again = Vec::new();
        let encoded = codec.encode(&hidden, width, &mut again);
        assert_eq!(encoded, Ok(()), "{codec}");
        let twice = codec.decode(&again, positions, width);
        match codec {
            Codec::Mixed8 | Codec::Mixed6 | Codec::Mixed4 => assert!(twice.is_ok(), "{codec}: {twice:?}"),
            _ => assert_eq!(twice.as_ref(), Ok(&hidden), "{codec}: a second hop changes something"),
        }
    }
    if let Ok(tokens) = Codec::decode_tokens(payload, positions) {
        assert_eq!(Codec::encode_tokens(&tokens), payload);
    }
}
