//! What a model is, independent of where its bytes lie.

use serde::{Deserialize, Serialize};

use crate::{ModelId, bounds};

/// What a model is: its tensors, the metadata that the engine reads, tokenizer and licence included.
///
/// Canonical: tensors and metadata are sorted by name and each appears once, so that one file, its parts, and an
/// Ollama store give one id. The encoding is postcard; [`Manifest::decode`] accepts no second encoding of anything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this structure; [`Manifest::VERSION`].
    pub version: u16,
    /// The tensors, sorted by name.
    pub tensors: Vec<TensorEntry>,
    /// The metadata, sorted by key: everything in the file but what only describes the file (`split.*`, alignment).
    pub metadata: Vec<(String, MetaValue)>,
}

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Its name, as the engine looks it up (`blk.3.attn_q.weight`).
    pub name: String,
    /// The layer it belongs to; none for embedding, output and what all layers share.
    pub layer: Option<u32>,
    /// ggml's number for its type.
    pub kind: TensorType,
    /// Extents, fastest varying first, as GGUF orders them.
    pub shape: Vec<u64>,
    /// Bytes of its data.
    pub bytes: u64,
    /// BLAKE3 of its data.
    pub hash: [u8; 32],
}

/// A tensor's type: ggml's number (0 `F32`, 1 `F16`, 2 `Q4_0`, ...).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TensorType(pub u32);

/// A metadata value, typed as in GGUF. Floats are bits, so that equality and hashing are exact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the variants are GGUF's own types, by name")]
pub enum MetaValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(u32),
    Bool(bool),
    String(String),
    Array(MetaArray),
    U64(u64),
    I64(i64),
    F64(u64),
}

/// A metadata array, typed as in GGUF. Strings are bytes: some vocabularies hold tokens that are not UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the variants are GGUF's own types, by name")]
pub enum MetaArray {
    U8(#[serde(with = "serde_bytes")] Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<u32>),
    Bool(Vec<bool>),
    String(Vec<serde_bytes::ByteBuf>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<u64>),
}

/// The sender of a manifest: it is not one, or not in canonical form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Larger than any manifest may be.
    #[error("a manifest of {0} bytes; the limit is {max}", max = bounds::MANIFEST_BYTES_MAX)]
    TooLarge(usize),
    /// The bytes are no manifest.
    #[error("these bytes are no manifest: {0}")]
    Malformed(String),
    /// A newer Potluck wrote it. Hint: upgrade.
    #[error("manifest version {0} is not known here; this build knows {known}", known = Manifest::VERSION)]
    Version(u16),
    /// Not sorted, a name twice, or a second encoding of the same content.
    #[error("the manifest is not in canonical form: {0}")]
    NotCanonical(&'static str),
}

impl Manifest {
    /// The version that this build writes and reads.
    pub const VERSION: u16 = 1;

    /// Sorts tensors and metadata into canonical order.
    pub fn new(mut tensors: Vec<TensorEntry>, mut metadata: Vec<(String, MetaValue)>) -> Self {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        metadata.sort_by(|a, b| a.0.cmp(&b.0));
        Self { version: Self::VERSION, tensors, metadata }
    }

    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "writing to memory fails only where memory ends")]
        postcard::to_stdvec(self).expect("a manifest encodes")
    }

    /// Reads canonical bytes, from a stranger as well.
    ///
    /// # Errors
    /// `TooLarge`, `Malformed`, `Version`, or `NotCanonical` where the same content has another encoding.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > bounds::MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        let manifest: Self = postcard::from_bytes(bytes).map_err(|e| ManifestError::Malformed(e.to_string()))?;
        if manifest.version != Self::VERSION {
            return Err(ManifestError::Version(manifest.version));
        }
        if !manifest.tensors.is_sorted_by(|a, b| a.name < b.name) {
            return Err(ManifestError::NotCanonical("tensors are not sorted, or one appears twice"));
        }
        if !manifest.metadata.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(ManifestError::NotCanonical("metadata is not sorted, or a key appears twice"));
        }
        if manifest.encode() != bytes {
            return Err(ManifestError::NotCanonical("a second encoding"));
        }
        Ok(manifest)
    }

    /// The model's name: BLAKE3 of the canonical bytes.
    pub fn id(&self) -> ModelId {
        ModelId::from_bytes(*blake3::hash(&self.encode()).as_bytes())
    }

    /// A metadata value by key.
    pub fn get(&self, key: &str) -> Option<&MetaValue> {
        self.metadata.binary_search_by(|(k, _)| k.as_str().cmp(key)).ok().map(|i| &self.metadata[i].1)
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok().map(|i| &self.tensors[i])
    }

    /// The architecture that the engine runs the model as (`llama`, `qwen3`, ...); empty where the file names none.
    pub fn architecture(&self) -> &str {
        self.string("general.architecture").unwrap_or_default()
    }

    /// A string by key.
    pub fn string(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            MetaValue::String(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number by key, of whatever width it was written.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.number()
    }

    /// A whole number under the architecture's own prefix (`llama.block_count` for `block_count`).
    pub fn arch_number(&self, key: &str) -> Option<u64> {
        self.number(&format!("{}.{key}", self.architecture()))
    }

    /// Layers of the model: its `block_count`.
    pub fn layers(&self) -> u32 {
        self.arch_number("block_count").and_then(|n| n.try_into().ok()).unwrap_or(0)
    }

    /// Values in one hidden state: its `embedding_length`.
    pub fn width(&self) -> u32 {
        self.arch_number("embedding_length").and_then(|n| n.try_into().ok()).unwrap_or(0)
    }

    /// Positions that the model was trained for: its `context_length`.
    pub fn context(&self) -> u32 {
        self.arch_number("context_length").and_then(|n| n.try_into().ok()).unwrap_or(0)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes).sum()
    }

    /// Bytes of the tensors of one layer.
    pub fn layer_bytes(&self, layer: u32) -> u64 {
        self.tensors.iter().filter(|t| t.layer == Some(layer)).map(|t| t.bytes).sum()
    }
}

impl MetaValue {
    /// A whole number, of whatever width it was written; none for the rest and for negative ones.
    pub fn number(&self) -> Option<u64> {
        match *self {
            Self::U8(n) => Some(n.into()),
            Self::U16(n) => Some(n.into()),
            Self::U32(n) => Some(n.into()),
            Self::U64(n) => Some(n),
            Self::I8(n) => n.try_into().ok(),
            Self::I16(n) => n.try_into().ok(),
            Self::I32(n) => n.try_into().ok(),
            Self::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Manifest {
        let tensor = |name: &str, layer| TensorEntry {
            name: name.into(),
            layer,
            kind: TensorType(0),
            shape: vec![2, 3],
            bytes: 24,
            hash: *blake3::hash(name.as_bytes()).as_bytes(),
        };
        Manifest::new(
            vec![tensor("token_embd.weight", None), tensor("blk.0.attn_q.weight", Some(0))],
            vec![
                ("llama.block_count".into(), MetaValue::U32(1)),
                ("general.architecture".into(), MetaValue::String("llama".into())),
                ("tokenizer.ggml.tokens".into(), MetaValue::Array(MetaArray::String(vec![vec![0xff].into()]))),
            ],
        )
    }

    #[test]
    fn the_bytes_are_pinned() {
        // A change of these two lines renames every model in the world: bump `VERSION` and say so in the changelog.
        assert_eq!(tiny().encode().len(), 193);
        assert_eq!(tiny().id().short(), "9adfef30b5");
    }

    #[test]
    fn order_of_insertion_does_not_matter() {
        let mut other = tiny();
        other.tensors.reverse();
        other.metadata.reverse();
        assert_eq!(Manifest::new(other.tensors, other.metadata).id(), tiny().id());
    }

    #[test]
    fn decodes_one_encoding_only() {
        let bytes = tiny().encode();
        assert_eq!(Manifest::decode(&bytes).unwrap(), tiny());
        let mut swapped = tiny();
        swapped.tensors.reverse();
        assert!(matches!(Manifest::decode(&swapped.encode()), Err(ManifestError::NotCanonical(_))));
        let mut twice = tiny();
        twice.metadata.insert(0, twice.metadata[0].clone());
        assert!(matches!(Manifest::decode(&twice.encode()), Err(ManifestError::NotCanonical(_))));
        let mut long = bytes.clone();
        long.push(0);
        assert!(Manifest::decode(&long).is_err(), "trailing bytes");
        let mut version = tiny();
        version.version = 2;
        assert_eq!(Manifest::decode(&version.encode()), Err(ManifestError::Version(2)));
    }

    proptest::proptest! {
        #[test]
        fn hostile_bytes(bytes: Vec<u8>) {
            let _ = Manifest::decode(&bytes);
        }

        #[test]
        fn perturbed_bytes(at in 0usize..193, byte: u8) {
            let mut bytes = tiny().encode();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(manifest) = Manifest::decode(&bytes) {
                proptest::prop_assert_eq!(manifest.encode(), bytes);
            }
        }
    }
}
