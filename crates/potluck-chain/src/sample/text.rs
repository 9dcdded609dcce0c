//! From tokens' bytes to text: a token may end in the middle of a character.

/// Joins bytes to text, and holds back what is not yet a whole character.
#[derive(Debug, Clone, Default)]
pub struct Utf8Stream {
    /// The beginning of a character: three bytes at most.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Adds bytes; returns the text that is complete. Bytes that can become no character turn into U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.pending);
        let mut text = String::with_capacity(bytes.len());
        let mut rest = bytes.as_slice();
        while let Err(error) = std::str::from_utf8(rest) {
            let (valid, invalid) = rest.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(valid));
            let Some(skip) = error.error_len() else {
                self.pending = invalid.to_vec();
                return text;
            };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &invalid[skip..];
        }
        text.push_str(&String::from_utf8_lossy(rest));
        text
    }

    /// Nothing follows: what was held back turns into U+FFFD.
    pub fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&held).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_character_appears_when_its_last_byte_does() {
        let mut stream = Utf8Stream::default();
        let emoji = "é🦙".as_bytes();
        assert_eq!(emoji.iter().map(|b| stream.push(&[*b])).collect::<Vec<_>>(), ["", "é", "", "", "", "🦙"]);
        assert_eq!(stream.push(&emoji[..1]), "");
        assert_eq!(stream.finish(), "\u{FFFD}");
        assert_eq!(stream.finish(), "");
    }

    proptest! {
        #[test]
        fn any_cut_of_any_bytes_gives_the_same_text(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xF0), Just(0x9F), Just(0xA6)], 0..40),
            cut in 1usize..5,
        ) {
            let mut stream = Utf8Stream::default();
            let mut text: String = bytes.chunks(cut).map(|chunk| stream.push(chunk)).collect();
            prop_assert!(stream.pending.len() < 4);
            text += &stream.finish();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
