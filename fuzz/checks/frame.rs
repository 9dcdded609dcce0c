//! A frame that decodes has one encoding.

pub(crate) fn check(bytes: &[u8]) {
    if let Ok(frame) = potluck_wire::Frame::decode(bytes) {
        let mut again = Vec::new();
        frame.encode(&mut again);
        assert_eq!(&again[4..], bytes, "a {} frame has a twin", frame.kind());
    }
}
