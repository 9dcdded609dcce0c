//! The header of a model file from a stranger.

pub(crate) fn check(bytes: &[u8]) {
    let _ = potluck_model::gguf::parse(bytes);
    // What a file claims to be longer than it is must not be believed.
    let _ = potluck_model::gguf::read(bytes, u64::MAX);
}
