//! The model: in a catalogue, as `potluck` itself keeps it.

use std::{path::Path, sync::Arc};

use potluck_core::{LayerRange, StageSpec, TensorType};
use potluck_engine::{EngineSettings, Load, Part};
use potluck_model::{Extent, VirtualFile, facts};
use potluck_store::{Catalogue, Entry, Locations};

use crate::Outcome;

/// A model of a catalogue.
#[derive(Debug)]
pub(crate) struct Model {
    /// What it is and where it lies.
    pub(crate) entry: Entry,
}

impl Model {
    /// Adds the file to the catalogue of `home`.
    pub(crate) fn add(home: &Path, file: &Path) -> Outcome<Self> {
        let catalogue = Catalogue::open(home.join("models"))?;
        let source = Locations::from_env().find(&file.to_string_lossy())?;
        Ok(Self { entry: catalogue.add(&source, None, &mut |_| {})?.entry })
    }

    /// The original file for the bare loop.
    pub(crate) fn whole(&self, settings: &EngineSettings) -> Outcome<Load> {
        let [file] = self.entry.place.files.as_slice() else { return Err("the model is in several files".into()) };
        let [spec] = self.split(1)?[..] else { return Err("the model has no layers".into()) };
        let model = VirtualFile::new(vec![Extent::File { file: 0, offset: 0, len: file.size }]);
        let f16 = TensorType(1);
        let cache_bytes_per_position = facts::cache_bytes_per_position(&self.entry.manifest, spec.layers, f16, f16);
        let part = Part::Whole { spec, model, cache_bytes_per_position };
        Ok(Load { part, settings: settings.clone(), files: vec![Arc::new(file.reopen()?)] })
    }

    /// Stages over all layers.
    pub(crate) fn split(&self, stages: usize) -> Outcome<Vec<StageSpec>> {
        let layers = self.entry.manifest.layers();
        let ranges = LayerRange::new(0, layers)?.split(stages)?;
        let spec = |range: LayerRange| StageSpec {
            model: self.entry.id,
            layers: range,
            head: range.start() == 0,
            tail: range.end() == layers,
        };
        Ok(ranges.into_iter().map(spec).collect())
    }
}
