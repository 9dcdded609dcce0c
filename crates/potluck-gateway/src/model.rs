//! What the gateway knows of the model.

use potluck_client::{ChatTemplate, SpecialTokens};
use potluck_engine::VocabularyClient;

/// The model that a gateway answers with.
#[derive(Debug, Clone)]
pub struct Model {
    /// Its name: what requests call it.
    pub name: String,
    /// Other names that requests may call it.
    pub aliases: Vec<String>,
    /// The hash of its manifest, in hexadecimal.
    pub id: String,
    /// Positions of one conversation.
    pub context: u32,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// Its architecture, as GGUF names it.
    pub family: String,
    /// The type of most of its weights, such as `Q4_1`.
    pub quantization: String,
    /// UTC seconds since when it is served.
    pub created: u64,
    /// What makes one text of messages.
    pub template: ChatTemplate,
    /// The tokens that the template may name.
    pub special: SpecialTokens,
    /// What makes tokens of text.
    pub vocabulary: VocabularyClient,
}

impl Model {
    /// True if a request that names `name` means this model.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        // Ollama's clients say `name:latest` where they mean the only one.
        let plain = name.strip_suffix(":latest").unwrap_or(name);
        plain == self.name || name == self.id || self.aliases.iter().any(|alias| alias == plain)
    }
}
