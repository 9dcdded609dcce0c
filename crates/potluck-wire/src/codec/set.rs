//! Sets of codecs, and their names.

use serde::{Deserialize, Serialize};

use super::Codec;

/// Codecs that a peer decodes, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodecSet(pub u32);

impl CodecSet {
    /// What this build decodes.
    pub fn all() -> Self {
        Codec::ALL.into_iter().collect()
    }

    /// Whether it holds `codec`.
    pub fn contains(self, codec: Codec) -> bool {
        self.0 & (1 << codec.number()) != 0
    }

    /// What both hold.
    pub fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl FromIterator<Codec> for CodecSet {
    fn from_iter<I: IntoIterator<Item = Codec>>(codecs: I) -> Self {
        Self(codecs.into_iter().fold(0, |set, codec| set | 1 << codec.number()))
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tokens => "tokens",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
            Self::Dyn8 => "dyn8",
            Self::Mixed8 => "mixed8",
            Self::Mixed6 => "mixed6",
            Self::Mixed4 => "mixed4",
        })
    }
}

impl std::str::FromStr for Codec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|codec| *codec != Self::Tokens && codec.to_string() == text);
        named.ok_or_else(|| format!("no codec `{text}`: choose f32, f16, q8, dyn8, mixed8, mixed6 or mixed4"))
    }
}
