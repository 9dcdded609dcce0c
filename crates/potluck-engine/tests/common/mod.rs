//! Models for the tests: the small real one, and stages of any GGUF file.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs::File, path::PathBuf, sync::Arc};

use potluck_core::{
    CacheId, Hidden, Input, LayerRange, Logits, Manifest, ModelId, Output, Rows, Stage, StageError, StageSpec, Step,
    TensorType, Tree,
};
use potluck_engine::{EngineSettings, FlashAttention, LlamaStage, Load, Part};
use potluck_model::{Extent, VirtualFile, facts, gguf, manifest_of, slice};

/// A GGUF file, its header and its manifest.
pub struct Gguf {
    pub path: PathBuf,
    pub file: Arc<File>,
    pub header: gguf::Header,
    pub manifest: Manifest,
}

/// The small real model: `POTLUCK_TEST_MODEL`, or where `make test` puts it.
pub fn small_model() -> Gguf {
    let path = std::env::var_os("POTLUCK_TEST_MODEL").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/potluck/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    });
    assert!(path.is_file(), "no test model at {}: run `make model`, or set POTLUCK_TEST_MODEL", path.display());
    Gguf::open(path)
}

/// Settings under which results are the same bit for bit. One thread: several tests share the cores, and threads that
/// wait for each other spin.
pub fn exact() -> EngineSettings {
    EngineSettings {
        threads: 1,
        threads_batch: 1,
        context: 512,
        caches: 2,
        exact: true,
        flash: FlashAttention::Off,
        ..EngineSettings::default()
    }
}

impl Gguf {
    pub fn open(path: PathBuf) -> Self {
        let file = File::open(&path).unwrap();
        let bytes = file.metadata().unwrap().len();
        let header = gguf::read(std::io::BufReader::new(&file), bytes).unwrap();
        let manifest = manifest_of(&[&header], |_, _| Some([0; 32])).unwrap();
        Self { path, file: Arc::new(file), header, manifest }
    }

    pub fn layers(&self) -> u32 {
        self.manifest.layers()
    }

    fn locate(&self, name: &str, offset: u64, len: u64) -> Option<Extent> {
        let info = self.header.tensors.iter().find(|info| info.name == name)?;
        Some(Extent::File { file: 0, offset: self.header.data_offset + info.offset + offset, len })
    }

    fn cache_bytes(&self, layers: LayerRange) -> u64 {
        facts::cache_bytes_per_position(&self.manifest, layers, TensorType(1), TensorType(1))
    }

    /// The load of one stage.
    pub fn stage(&self, layers: LayerRange, settings: &EngineSettings) -> Load {
        let (head, tail) = (layers.start() == 0, layers.end() == self.layers());
        self.ends(layers, head, tail, settings)
    }

    pub fn ends(&self, layers: LayerRange, head: bool, tail: bool, settings: &EngineSettings) -> Load {
        let plan = slice::plan(&self.manifest, layers, head, tail).unwrap();
        let source = plan.resolve(|name, offset, len| self.locate(name, offset, len)).unwrap();
        let spec = StageSpec { model: ModelId::from_bytes([1; 32]), layers, head, tail };
        let part = Part::Stage { spec, source, cache_bytes_per_position: self.cache_bytes(layers) };
        Load { part, settings: settings.clone(), files: vec![self.file.clone()] }
    }

    /// The load of the original file.
    pub fn whole(&self, settings: &EngineSettings) -> Load {
        let layers = LayerRange::new(0, self.layers()).unwrap();
        let spec = StageSpec { model: ModelId::from_bytes([1; 32]), layers, head: true, tail: true };
        let len = self.file.metadata().unwrap().len();
        let model = VirtualFile::new(vec![Extent::File { file: 0, offset: 0, len }]);
        let part = Part::Whole { spec, model, cache_bytes_per_position: self.cache_bytes(layers) };
        Load { part, settings: settings.clone(), files: vec![self.file.clone()] }
    }

    /// The load of the tokenizer.
    pub fn vocabulary(&self) -> Load {
        let part = Part::Vocabulary { model: slice::vocabulary_file(&self.manifest).unwrap() };
        Load { part, settings: exact(), files: Vec::new() }
    }

    /// The loads of `parts` stages.
    pub fn chain(&self, parts: usize, settings: &EngineSettings) -> Vec<Load> {
        let all = LayerRange::new(0, self.layers()).unwrap();
        all.split(parts).unwrap().into_iter().map(|layers| self.stage(layers, settings)).collect()
    }
}

/// Stages one after the other in this process.
pub struct Chain(pub Vec<Box<dyn Stage>>);

impl Chain {
    pub fn load(loads: &[Load]) -> Self {
        Self(loads.iter().map(|load| Box::new(LlamaStage::load(load, |_| {}).unwrap()) as Box<dyn Stage>).collect())
    }

    pub fn open(&mut self, cache: CacheId, positions: u32) {
        self.0.iter_mut().for_each(|stage| stage.open(cache, positions).unwrap());
    }

    pub fn fork(&mut self, from: CacheId, to: CacheId, positions: u32) {
        self.0.iter_mut().for_each(|stage| stage.fork(from, to, positions).unwrap());
    }

    pub fn close(&mut self, cache: CacheId) {
        self.0.iter_mut().for_each(|stage| stage.close(cache));
    }

    /// Whole rows of logits for `tokens` at `start`.
    pub fn run(&mut self, cache: CacheId, start: u32, tokens: &[u32], rows: Rows) -> Result<Vec<Vec<f32>>, StageError> {
        let input = Input::Tokens(tokens.to_vec());
        let mut outputs = self.steps(vec![Step { cache, start, input, rows, top: 0, tree: Tree::chain() }]);
        outputs.pop().unwrap().map(|logits| logits.into_iter().map(whole).collect())
    }

    /// Runs several sessions' steps as one call to each stage.
    pub fn steps(&mut self, mut steps: Vec<Step>) -> Vec<Result<Vec<Logits>, StageError>> {
        let mut results: Vec<Option<Result<Vec<Logits>, StageError>>> = steps.iter().map(|_| None).collect();
        let mut places: Vec<usize> = (0..steps.len()).collect();
        for stage in &mut self.0 {
            let outputs = stage.forward(&mut steps);
            let (mut next, mut next_places) = (Vec::new(), Vec::new());
            for ((output, step), place) in outputs.into_iter().zip(steps).zip(places) {
                match output {
                    Ok(Output::Hidden(hidden)) => {
                        next.push(Step { input: Input::Hidden(hidden), ..step });
                        next_places.push(place);
                    }
                    Ok(Output::Logits(logits)) => results[place] = Some(Ok(logits)),
                    Err(error) => results[place] = Some(Err(error)),
                }
            }
            (steps, places) = (next, next_places);
        }
        results.into_iter().map(Option::unwrap).collect()
    }
}

pub fn whole(logits: Logits) -> Vec<f32> {
    match logits {
        Logits::Whole(Hidden(row)) => row,
        Logits::Top { .. } => panic!("a whole row was asked for"),
    }
}

pub fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a))).unwrap() as u32
}

/// Bits, so that a comparison says equal and not nearly.
pub fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|value| value.to_bits()).collect()
}

/// Made-up tokens of a vocabulary: the same every time.
pub fn tokens(seed: u64, count: usize, vocabulary: u32) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as u32 % vocabulary
    };
    (0..count).map(|_| next()).collect()
}
