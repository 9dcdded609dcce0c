//! A manifest that decodes has one encoding: its hash names the model.

pub(crate) fn check(bytes: &[u8]) {
    if let Ok(manifest) = potluck_core::Manifest::decode(bytes) {
        assert_eq!(manifest.encode(), bytes);
    }
}
