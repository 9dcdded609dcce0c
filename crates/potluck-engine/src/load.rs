//! What an engine is asked to load.

use std::{fs::File, sync::Arc};

use potluck_core::StageSpec;
use potluck_model::{StageSource, VirtualFile};
use serde::{Deserialize, Serialize};

use crate::EngineSettings;

/// Files that one engine reads: what fits a single message with descriptors on Linux.
pub const FILES_MAX: usize = 250;

/// What an engine is asked to load. Travels to the child in its first frame; the files travel beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Part {
    /// A slice, or all layers, in the form that takes hidden states: what peers lend.
    Stage {
        /// Which part of which model.
        spec: StageSpec,
        /// The virtual GGUF, the embedding table, and the model's shape.
        source: StageSource,
        /// Bytes of cache that one position takes, for the type in the settings.
        cache_bytes_per_position: u64,
    },
    /// The original file with token ids as input: nothing of the slicer, the lookup or the capture. For `--local`.
    Whole {
        /// Names the model; its layers are all layers, head and tail are true.
        spec: StageSpec,
        /// The original file, or its parts in one.
        model: VirtualFile,
        /// As for a stage.
        cache_bytes_per_position: u64,
    },
    /// Tokenizer and grammar only.
    Vocabulary {
        /// A GGUF whose tensors are not read.
        model: VirtualFile,
    },
}

/// What to load, how to run it, and the files that the virtual files' extents index.
#[derive(Debug, Clone)]
pub struct Load {
    /// What.
    pub part: Part,
    /// How.
    pub settings: EngineSettings,
    /// Open for reading; the engine opens nothing itself.
    pub files: Vec<Arc<File>>,
}

impl Part {
    /// The virtual file that llama.cpp reads.
    pub fn model(&self) -> &VirtualFile {
        match self {
            Self::Stage { source, .. } => &source.model,
            Self::Whole { model, .. } | Self::Vocabulary { model } => model,
        }
    }
}
