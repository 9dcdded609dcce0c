//! The bare llama.cpp loop, in this process, on the original file: what all else is measured against.
//!
//! Nothing of Potluck is between the tokens and `llama_decode`: no slicer, no lookup, no capture, no child.

use std::time::{Duration, Instant};

use crate::{
    EngineError, Load,
    llama::{Batch, Context, ContextParams, Model, ModelParams, Rows},
};

/// A model and one session, driven as llama.cpp's own tools do.
pub struct Bare {
    context: Context,
    batch: Batch,
    chunk: usize,
    held: u32,
}

impl std::fmt::Debug for Bare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bare").field("held", &self.held).finish_non_exhaustive()
    }
}

impl Bare {
    /// Loads the file of `load`, with its settings.
    ///
    /// # Errors
    /// As for a stage.
    pub fn load(load: &Load) -> Result<Self, EngineError> {
        let settings = &load.settings;
        settings.check()?;
        let params = ModelParams { gpu_layers: settings.gpu_layers, mmap: settings.mmap, vocabulary_only: false };
        let model = Model::load(load.part.model(), &load.files, params, |_| {})?;
        let batch = Batch::new(&model, true);
        let context = Context::new(model, ContextParams { settings, capture: None })?;
        Ok(Self { context, batch, chunk: settings.chunk.into(), held: 0 })
    }

    /// Forgets the session.
    pub fn clear(&mut self) {
        self.context.truncate(0, 0);
        self.held = 0;
    }

    /// Runs `tokens` in chunks, asks for the last row's logits, and says how long it took.
    ///
    /// # Errors
    /// `Context` where `llama_decode` fails: the session is full.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<Duration, EngineError> {
        let start = Instant::now();
        let chunks = tokens.len().div_ceil(self.chunk);
        for (at, chunk) in tokens.chunks(self.chunk).enumerate() {
            self.run(chunk, at + 1 == chunks)?;
        }
        Ok(start.elapsed())
    }

    /// Goes on greedily from `token` for `count` tokens; those, and how long it took.
    ///
    /// # Errors
    /// As for [`prefill`](Self::prefill).
    pub fn decode(&mut self, mut token: u32, count: usize) -> Result<(Vec<u32>, Duration), EngineError> {
        let start = Instant::now();
        let mut tokens = Vec::with_capacity(count);
        for _ in 0..count {
            self.run(&[token], true)?;
            token = self.likeliest(0)?;
            tokens.push(token);
        }
        Ok((tokens, start.elapsed()))
    }

    /// The likeliest token after the last row of the last batch, which had `rows` rows before it.
    ///
    /// # Errors
    /// `Context` where no logits were asked for.
    pub fn likeliest(&self, rows: usize) -> Result<u32, EngineError> {
        let logits = self.context.logits(rows).ok_or_else(|| EngineError::Context("no logits".into()))?;
        let best = logits
            .iter()
            .enumerate()
            .fold((0, f32::NEG_INFINITY), |best, (token, &logit)| if logit > best.1 { (token, logit) } else { best });
        Ok(best.0 as u32)
    }

    fn run(&mut self, tokens: &[u32], last: bool) -> Result<(), EngineError> {
        self.batch.clear();
        if let Rows::Tokens(into) = &mut self.batch.rows {
            into.extend(tokens.iter().map(|&token| token as i32));
        }
        for at in 0..tokens.len() {
            self.batch.push(0, self.held + at as u32, last && at + 1 == tokens.len());
        }
        self.context.decode(&mut self.batch).map_err(|why| EngineError::Context(why.to_string()))?;
        self.held += tokens.len() as u32;
        Ok(())
    }
}
