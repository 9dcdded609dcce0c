//! The GGUF container: header in, header out. Both ends treat the file as a stranger's.
//!
//! ```
//! use potluck_core::MetaValue;
//! use potluck_model::gguf;
//! let bytes = gguf::write(&[("general.architecture".into(), MetaValue::String("llama".into()))], &[])?;
//! assert_eq!(gguf::parse(&bytes)?.metadata.len(), 1);
//! # Ok::<(), gguf::GgufError>(())
//! ```
//! Nothing is allocated from a length that the file announces: memory grows with the bytes that have arrived.

mod read;
mod write;

use potluck_core::{MetaValue, TensorType};

pub use read::{parse, read};
pub use write::write;

/// First bytes of every GGUF.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The version that [`write`] writes.
pub const VERSION: u32 = 3;
/// Bytes of a header: a longer one is refused. A vocabulary of a million tokens with merges fits.
pub const HEADER_BYTES_MAX: u64 = 64 << 20;
/// Metadata entries of a file: more are refused.
pub const KEYS_MAX: u64 = 4_096;
/// Bytes of a metadata key: a longer one is refused.
pub const KEY_BYTES_MAX: u64 = 1_024;
/// Bytes of one string value, a chat template for example: a longer one is refused.
pub const STRING_BYTES_MAX: u64 = 4 << 20;
/// Elements of one array: a longer one is refused.
pub const ARRAY_LEN_MAX: u64 = 1 << 22;
/// Tensors of a file: more are refused.
pub const TENSORS_MAX: u64 = 1 << 16;
/// Bytes of a tensor's name: ggml's own limit, less its final zero.
pub const NAME_BYTES_MAX: u64 = 63;
/// Extents of a tensor: ggml's own limit.
pub const DIMENSIONS_MAX: u32 = 4;
/// Alignment where the file names none.
pub const ALIGNMENT_DEFAULT: u64 = 32;
/// Largest alignment: a larger one is refused, for padding would be most of the file.
pub const ALIGNMENT_MAX: u64 = 1 << 16;
/// The key that names a file's alignment.
pub const ALIGNMENT_KEY: &str = "general.alignment";

const _: () =
    assert!(HEADER_BYTES_MAX as usize <= potluck_core::bounds::MANIFEST_BYTES_MAX, "a header fits a manifest");
const _: () = assert!(ALIGNMENT_DEFAULT.is_power_of_two() && ALIGNMENT_DEFAULT <= ALIGNMENT_MAX, "a legal default");

/// A GGUF's header: what the file says about itself and where its tensors lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The metadata, in file order; no key twice.
    pub metadata: Vec<(String, MetaValue)>,
    /// The tensors, in file order; no name twice, no byte shared, all inside the file.
    pub tensors: Vec<TensorInfo>,
    /// Every tensor starts at a multiple of this; a power of two.
    pub alignment: u64,
    /// Where the tensors' bytes start in the file.
    pub data_offset: u64,
}

/// One tensor of a GGUF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// ggml's type.
    pub kind: TensorType,
    /// Extents, fastest varying first; one to four, none of them zero.
    pub shape: Vec<u64>,
    /// Where its bytes start, counted from [`Header::data_offset`].
    pub offset: u64,
    /// Bytes of its data.
    pub bytes: u64,
}

/// A tensor to write: [`write`] assigns the offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// ggml's type.
    pub kind: TensorType,
    /// Extents, fastest varying first.
    pub shape: Vec<u64>,
}

impl Header {
    /// A metadata value by key.
    pub fn get(&self, key: &str) -> Option<&MetaValue> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// A whole number by key.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.number()
    }
}

/// The file: it is no GGUF that we can use. Nothing to retry; hint: download it again, or convert it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// It does not start like a GGUF.
    #[error("not a GGUF file: it starts with {0:02x?}")]
    Magic([u8; 4]),
    /// Version 1, big endian, or one from the future.
    #[error("GGUF version {0} is not supported; this build reads little-endian versions 2 and 3")]
    Version(u32),
    /// It ends too early.
    #[error("the file ends inside {0}")]
    Truncated(&'static str),
    /// It could not be read.
    #[error("the file could not be read: {0}")]
    Io(String),
    /// A count or length is beyond its bound.
    #[error("{what} is {value}; the limit is {max}")]
    Bound {
        /// Whose count.
        what: &'static str,
        /// What the file says.
        value: u64,
        /// The bound.
        max: u64,
    },
    /// The same key twice.
    #[error("the metadata key `{0}` appears twice, or is empty")]
    DuplicateKey(String),
    /// The same tensor twice.
    #[error("the tensor `{0}` appears twice, or has no name")]
    DuplicateTensor(String),
    /// An unknown type number, a nested array, or a boolean that is neither 0 nor 1.
    #[error("the metadata key `{key}` has {what}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong with its value.
        what: &'static str,
    },
    /// A key or a name that is not UTF-8.
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
    /// A type, shape or size that ggml cannot hold.
    #[error("the tensor `{name}` of type {kind} and shape {shape:?} is not possible: {what}")]
    Tensor {
        /// Its name.
        name: String,
        /// ggml's number for its type.
        kind: u32,
        /// Its extents.
        shape: Vec<u64>,
        /// What is wrong.
        what: &'static str,
    },
    /// A tensor's bytes are not where they could be.
    #[error("the tensor `{name}` has {bytes} bytes at {offset}: {what}")]
    Place {
        /// Its name.
        name: String,
        /// Where it starts, from the start of the data.
        offset: u64,
        /// Its bytes.
        bytes: u64,
        /// What is wrong.
        what: &'static str,
    },
}
