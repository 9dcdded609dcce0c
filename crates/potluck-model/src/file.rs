//! A file that exists only as a list of extents: made bytes, zeros, and ranges of real files.

use serde::{Deserialize, Serialize};

/// A file that no disk holds: its bytes are its extents, one after the other.
///
/// The engine reads it in place (`pread` on the files behind it), so that a stage costs no second copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualFile {
    /// Bytes: the sum of its extents.
    pub size: u64,
    /// In file order, without a gap.
    pub extents: Vec<Extent>,
}

/// A run of a virtual file's bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extent {
    /// These bytes.
    Inline(#[serde(with = "serde_bytes")] Vec<u8>),
    /// That many zeros.
    Zeros {
        /// Bytes.
        len: u64,
    },
    /// A range of one of the files that go with the virtual file.
    File {
        /// Index in the list of files.
        file: u16,
        /// Where the range starts in that file.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

impl Extent {
    /// Bytes of the extent.
    pub fn len(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Zeros { len } | Self::File { len, .. } => *len,
        }
    }

    /// True if it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for Extent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(bytes) => write!(f, "Inline({} bytes)", bytes.len()),
            Self::Zeros { len } => write!(f, "Zeros({len})"),
            Self::File { file, offset, len } => write!(f, "File({file}, {offset}..+{len})"),
        }
    }
}

impl VirtualFile {
    /// The extents as one file.
    pub fn new(extents: Vec<Extent>) -> Self {
        Self { size: extents.iter().map(Extent::len).fold(0, u64::saturating_add), extents }
    }
}
