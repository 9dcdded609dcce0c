//! The small real model, as loads for engines.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs::File, path::PathBuf, sync::Arc};

use potluck_core::{LayerRange, Manifest, StageSpec};
use potluck_engine::{EngineProgram, EngineSettings, FlashAttention, Load, Part, VocabularyClient};
use potluck_model::{Extent, Facts, VirtualFile, gguf, manifest_of, slice};

/// A model file and its manifest (without hashes: nothing here is fetched).
pub struct SmallModel {
    pub manifest: Manifest,
    file: Arc<File>,
    bytes: u64,
}

/// The small real model: `POTLUCK_TEST_MODEL`, or where `make test` puts it.
pub fn small_model() -> SmallModel {
    let path = std::env::var_os("POTLUCK_TEST_MODEL").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/potluck/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    });
    assert!(path.is_file(), "no test model at {}: run `make model`, or set POTLUCK_TEST_MODEL", path.display());
    let file = File::open(&path).unwrap();
    let bytes = file.metadata().unwrap().len();
    let header = gguf::read(std::io::BufReader::new(&file), bytes).unwrap();
    let manifest = manifest_of(&[&header], |_, _| Some([0; 32])).unwrap();
    SmallModel { manifest, file: Arc::new(file), bytes }
}

pub fn program() -> EngineProgram {
    EngineProgram { program: env!("CARGO_BIN_EXE_potluck-client-engine").into(), args: Vec::new() }
}

impl SmallModel {
    fn load(&self, part: Part) -> Load {
        let settings = EngineSettings {
            threads: 1,
            threads_batch: 1,
            context: 512,
            caches: 1,
            exact: true,
            flash: FlashAttention::Off,
            ..EngineSettings::default()
        };
        Load { part, settings, files: vec![self.file.clone()] }
    }

    /// The whole model, token ids in.
    pub fn whole(&self) -> Load {
        let layers = LayerRange::new(0, self.manifest.layers()).unwrap();
        let spec = StageSpec { model: self.manifest.id(), layers, head: true, tail: true };
        let model = VirtualFile::new(vec![Extent::File { file: 0, offset: 0, len: self.bytes }]);
        let cache_bytes_per_position = Facts::of(&self.manifest).cache_bytes_per_position;
        self.load(Part::Whole { spec, model, cache_bytes_per_position })
    }

    pub async fn vocabulary(&self) -> VocabularyClient {
        let model = slice::vocabulary_file(&self.manifest).unwrap();
        VocabularyClient::start(program(), self.load(Part::Vocabulary { model })).await.unwrap()
    }
}
