//! The texts of a model's own control tokens, which templates write out.

use potluck_core::{Manifest, MetaArray, MetaValue};

/// The texts of the tokens that begin and end a text; empty where the model has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// `bos_token`.
    pub begin: String,
    /// `eos_token`.
    pub end: String,
}

impl SpecialTokens {
    /// As the model's metadata has them.
    pub fn of(manifest: &Manifest) -> Self {
        let text = |key: &str| text_of(manifest, manifest.number(key)?);
        let get = |key| text(key).unwrap_or_default();
        Self { begin: get("tokenizer.ggml.bos_token_id"), end: get("tokenizer.ggml.eos_token_id") }
    }
}

fn text_of(manifest: &Manifest, token: u64) -> Option<String> {
    let MetaValue::Array(MetaArray::String(tokens)) = manifest.get("tokenizer.ggml.tokens")? else { return None };
    let bytes = tokens.get(usize::try_from(token).ok()?)?;
    String::from_utf8(bytes.to_vec()).ok()
}
