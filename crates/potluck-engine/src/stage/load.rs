//! Loading a stage, and the trial that shows that it runs.

use std::{ffi::CString, fs::File, sync::Arc, time::Instant};

use potluck_core::{StageShape, StageSpec, bounds};
use potluck_model::{StageSource, VirtualFile};

use super::{Caches, Entry, LlamaStage, Pace};
use crate::{
    EngineError, Load, Part,
    llama::{Batch, Context, ContextParams, Model, ModelParams, Rows, Table, VirtualReader},
};

impl LlamaStage {
    /// Loads `load`, calling `progress` with 0.0 to 1.0 now and then.
    ///
    /// # Errors
    /// `Settings` and `CacheBudget` before anything is read; `Model`, `Mismatch`, `Context` or `NotAStage` where the
    /// file is not what it should be. A hostile file may also end the process: strangers' models load in a child.
    pub fn load(load: &Load, progress: impl FnMut(f32)) -> Result<Self, EngineError> {
        load.settings.check()?;
        let (spec, model, cache_bytes_per_position) = match &load.part {
            Part::Stage { spec, source, cache_bytes_per_position } => (spec, &source.model, *cache_bytes_per_position),
            Part::Whole { spec, model, cache_bytes_per_position } => (spec, model, *cache_bytes_per_position),
            Part::Vocabulary { .. } => {
                return Err(EngineError::NotAStage("only its vocabulary is to be loaded".into()));
            }
        };
        load.settings.check_budget(cache_bytes_per_position)?;
        let model = open(model, load, progress)?;
        let (entry, vocabulary) = match &load.part {
            Part::Stage { source, .. } => (entry(&model, spec, source, &load.files)?, source.vocabulary),
            _ => (Entry::Tokens, model.vocabulary()),
        };
        let shape = StageShape {
            spec: *spec,
            width: model.width(),
            vocabulary,
            caches: load.settings.caches,
            context: load.settings.context,
            cache_bytes_per_position,
            weight_bytes: model.bytes(),
            exact: load.settings.exact,
        };
        check_model(&model, &shape)?;
        Self::with(model, entry, shape, load)
    }

    fn with(model: Arc<Model>, entry: Entry, shape: StageShape, load: &Load) -> Result<Self, EngineError> {
        let settings = &load.settings;
        // The last layer's output, before the final norm; a tail gives logits instead.
        let capture = CString::new(format!("l_out-{}", model.layers().saturating_sub(1))).unwrap_or_default();
        let capture = (!shape.spec.tail).then_some(capture);
        let batch = Batch::new(&model, matches!(entry, Entry::Tokens));
        let context = Context::new(model, ContextParams { settings, capture })?;
        if context.context() < settings.context {
            return Err(EngineError::Context(format!(
                "a cache has {} positions instead of {}",
                context.context(),
                settings.context
            )));
        }
        let caches = Caches::new(settings.caches);
        let threads = (settings.threads, settings.threads_batch);
        let pace = Pace::constant();
        let chunk = settings.chunk.into();
        let (wipe_within, unwiped_since, passing) = (settings.wipe_within, None, None);
        let mut stage =
            Self { shape, chunk, entry, context, batch, caches, threads, pace, wipe_within, unwiped_since, passing };
        // Peers of one machine load at the same time: threads of theirs that spin for each other would take turns at it.
        stage.context.use_threads(1, 1);
        stage.try_out()?;
        // Once more, now that the weights are warm.
        stage.context.use_threads(settings.threads.div_ceil(2), settings.threads_batch.div_ceil(2));
        let start = Instant::now();
        stage.try_out()?;
        // An exact stage keeps its threads: that their number changes nothing without flash attention was measured, not proven.
        if !settings.exact {
            stage.pace = Pace::new(settings.threads, start.elapsed().as_secs_f64());
        }
        stage.change_threads();
        Ok(stage)
    }

    /// Runs one position of zeros: the family may name its layers' outputs in a way that is not known here, and the
    /// first batch is slow anyway.
    fn try_out(&mut self) -> Result<(), EngineError> {
        self.batch.clear();
        match &mut self.batch.rows {
            Rows::Tokens(tokens) => tokens.push(0),
            Rows::Hidden(hidden) => hidden.resize(self.shape.width as usize, 0.0),
        }
        self.batch.push(0, 0, true);
        self.context.decode(&mut self.batch).map_err(|why| EngineError::NotAStage(why.to_string()))?;
        if !self.context.truncate(0, 0) {
            return Err(EngineError::NotAStage("its cache cannot be cut back".into()));
        }
        self.context.wipe();
        Ok(())
    }
}

fn open(model: &VirtualFile, load: &Load, progress: impl FnMut(f32)) -> Result<Arc<Model>, EngineError> {
    let params = ModelParams { gpu_layers: load.settings.gpu_layers, mmap: load.settings.mmap, vocabulary_only: false };
    Model::load(model, &load.files, params, progress)
}

/// How tokens or hidden states enter a stage made by the slicer; refuses a file that is not what was planned.
fn entry(model: &Model, spec: &StageSpec, source: &StageSource, files: &[Arc<File>]) -> Result<Entry, EngineError> {
    expect("number of layers", source.layers, model.layers())?;
    expect("width", source.width, model.width())?;
    expect("number of position components", source.positions_per_token.into(), model.position_components() as u32)?;
    if source.tail {
        expect("vocabulary", source.vocabulary, model.vocabulary())?;
    }
    if source.tail != spec.tail || source.embedding.is_some() != spec.head {
        return Err(EngineError::NotAStage("its ends are not those that were asked for".into()));
    }
    let Some((table, extents)) = &source.embedding else { return Ok(Entry::Hidden) };
    expect("embedding's width", source.width, table.width)?;
    expect("embedding's rows", source.vocabulary, table.rows)?;
    let reader = VirtualReader::new(extents, files)?;
    Ok(Entry::Table(Table::new(reader, table.kind.0, (table.rows, table.width, table.row_bytes), table.scale)?))
}

fn check_model(model: &Model, shape: &StageShape) -> Result<(), EngineError> {
    let refuse = |why: String| Err(EngineError::NotAStage(why));
    if shape.width == 0 || shape.width as usize > bounds::HIDDEN_WIDTH_MAX {
        return refuse(format!("its hidden states have {} values; 1 to {} do", shape.width, bounds::HIDDEN_WIDTH_MAX));
    }
    if shape.vocabulary as usize > bounds::VOCABULARY_MAX {
        return refuse(format!("its vocabulary has {} tokens; up to {} do", shape.vocabulary, bounds::VOCABULARY_MAX));
    }
    if model.input_width() != model.width() {
        return refuse(format!("an input has {} values, a hidden state {}", model.input_width(), model.width()));
    }
    if !model.decoder_only() {
        return refuse("it does not generate text from left to right".into());
    }
    if model.recurrent() {
        return refuse("its running state cannot be cut back to a step's start".into());
    }
    Ok(())
}

fn expect(what: &str, expected: u32, found: u32) -> Result<(), EngineError> {
    match expected == found {
        true => Ok(()),
        false => Err(EngineError::Mismatch { what: what.into(), expected: expected.into(), found: found.into() }),
    }
}
