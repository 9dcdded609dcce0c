//! The model's stages: who holds which layers, and an engine for one of them.

use std::sync::Arc;

use potluck_core::{LayerRange, StageSpec, TensorType};
use potluck_engine::{EngineProcess, EngineProgram, EngineSettings, Load, Part, VocabularyClient};
use potluck_model::{facts, slice};
use potluck_net::StagePort;
use potluck_store::{Entry, open_stage};
use tokio::sync::mpsc;

use crate::Outcome;

/// Layers of each end that the client holds: no peer sees a token.
pub(crate) const OWN_LAYERS: u32 = 1;

/// What makes this program an engine.
pub(crate) const ENGINE: &str = "wan-engine";

/// Own ends, and so many stages of peers between them, in the order of their layers.
pub(crate) fn split(entry: &Entry, peers: usize) -> Outcome<Vec<StageSpec>> {
    let layers = entry.manifest.layers();
    let (first, last) = (OWN_LAYERS, layers.saturating_sub(OWN_LAYERS));
    let inner = LayerRange::new(first, last)?.split(peers)?;
    let ends = [LayerRange::new(0, first)?, LayerRange::new(last, layers)?];
    let mut ranges: Vec<LayerRange> = inner.into_iter().chain(ends).collect();
    ranges.sort_unstable();
    Ok(ranges.into_iter().map(|layers| spec(entry, layers)).collect())
}

/// All layers in one.
pub(crate) fn whole(entry: &Entry) -> Outcome<StageSpec> {
    Ok(spec(entry, LayerRange::new(0, entry.manifest.layers())?))
}

fn spec(entry: &Entry, layers: LayerRange) -> StageSpec {
    StageSpec { model: entry.id, layers, head: layers.start() == 0, tail: layers.end() == entry.manifest.layers() }
}

/// Starts an engine for a stage; it ends with its port.
pub(crate) async fn start(entry: &Entry, spec: StageSpec, settings: &EngineSettings) -> Outcome<StagePort> {
    let opened = open_stage(entry, &slice::plan(&entry.manifest, spec.layers, spec.head, spec.tail)?)?;
    let f16 = TensorType(1);
    let cache_bytes_per_position = facts::cache_bytes_per_position(&entry.manifest, spec.layers, f16, f16);
    let part = Part::Stage { spec, source: opened.source, cache_bytes_per_position };
    let load = Load { part, settings: settings.clone(), files: opened.files.into_iter().map(Arc::new).collect() };
    let engine = EngineProcess::start(EngineProgram::current([ENGINE])?, load).await?;
    let (commands, to_engine) = mpsc::channel(64);
    let (from_engine, replies) = mpsc::channel(64);
    // What ends it is heard by whoever waits for its next reply.
    tokio::spawn(engine.run(to_engine, from_engine));
    Ok(StagePort { commands, replies })
}

/// Starts the process that knows the vocabulary.
pub(crate) async fn vocabulary(entry: &Entry, settings: &EngineSettings) -> Outcome<VocabularyClient> {
    let part = Part::Vocabulary { model: slice::vocabulary_file(&entry.manifest)? };
    let load = Load { part, settings: settings.clone(), files: Vec::new() };
    Ok(VocabularyClient::start(EngineProgram::current([ENGINE])?, load).await?)
}
