//! The models of this machine: found by name or by path, and opened for an engine.

mod keeper;
mod open;
mod probe;
mod proof;
mod room;
mod travel;

use std::path::Path;

use potluck_core::with_causes;
use potluck_store::{Catalogue, Entry, Locations, Source, StoreError};

use crate::{failure::Failure, home::Home, screen::Screen};

pub(crate) use keeper::Keeper;
pub(crate) use open::{all_layers, cache_bytes, load_stage, load_vocabulary, load_whole, stage_bytes};
pub(crate) use probe::admit;
pub(crate) use proof::{CodecChoice, Proven, scored};
pub(crate) use room::{age, room, tell_removed};
pub(crate) use travel::{Sharers, find_model, pull_from_web, pull_model, pull_stage};

/// This machine's catalogue, and the places that other programs keep models in.
#[derive(Debug)]
pub(crate) struct Models {
    pub(crate) catalogue: Catalogue,
    locations: Locations,
}

impl Models {
    /// The catalogue of this home.
    pub(crate) fn open(home: &Home) -> Result<Self, Failure> {
        Self::at(&home.models())
    }

    /// The catalogue in this folder.
    pub(crate) fn at(folder: &Path) -> Result<Self, Failure> {
        Ok(Self { catalogue: Catalogue::open(folder)?, locations: Locations::from_env() })
    }

    /// A model by name, by id, or by where it lies: then it is added on the fly.
    pub(crate) fn find(&self, text: &str, screen: Screen) -> Result<Entry, Failure> {
        match self.catalogue.get(text) {
            Ok(entry) => match entry.check() {
                // The same path holds another file now: what the user names is what lies there.
                Err(StoreError::SourceChanged { .. }) if Path::new(text).exists() => self.add(text, None, screen),
                checked => Ok(checked.map(|()| entry)?),
            },
            Err(StoreError::Unknown(_)) if is_place(text) => self.add(text, None, screen),
            Err(error) => Err(error.into()),
        }
    }

    /// The model that is meant where none was named: the only one.
    pub(crate) fn find_or_only(&self, text: Option<&str>, screen: Screen) -> Result<Entry, Failure> {
        if let Some(text) = text {
            return self.find(text, screen);
        }
        match <[Entry; 1]>::try_from(self.catalogue.list()?) {
            Ok([entry]) => Ok(entry.check().map(|()| entry)?),
            Err(entries) if entries.is_empty() => Err(Failure::new(
                "no_model",
                "this machine knows no model yet",
                "potluck model add PATH, or potluck model pull hf:ORG/NAME",
            )),
            Err(entries) => {
                let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
                Err(Failure::usage(format!("which model? There are {}", names.join(", ")), "say --model NAME"))
            }
        }
    }

    /// Adds what lies there: reads all of it once.
    pub(crate) fn add(&self, text: &str, name: Option<&str>, screen: Screen) -> Result<Entry, Failure> {
        self.add_source(&self.locations.find(text)?, name, screen)
    }

    /// The same, once it was found.
    pub(crate) fn add_source(&self, source: &Source, name: Option<&str>, screen: Screen) -> Result<Entry, Failure> {
        let bar = screen.bytes(format!("adding {}", source.name));
        Ok(self.catalogue.add(source, name, &mut |progress| bar.at(progress.done, progress.total))?.entry)
    }
}

/// True for what reads as a place and not as a name.
fn is_place(text: &str) -> bool {
    text.starts_with("ollama:") || text.starts_with("hf:") || text.contains(['/', '\\']) || Path::new(text).exists()
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        if let Some(failure) = room::no_room(&error) {
            return failure;
        }
        let code = match &error {
            StoreError::Unknown(_) | StoreError::NoModel { .. } => "no_model",
            StoreError::Ambiguous { .. } | StoreError::Several { .. } => "ambiguous",
            StoreError::NameTaken(_) | StoreError::BadName(_) => "bad_name",
            StoreError::Gguf { .. } | StoreError::Model(_) => "bad_model",
            StoreError::SourceChanged { .. } | StoreError::SourceMissing { .. } | StoreError::Damaged { .. } => {
                "model_changed"
            }
            StoreError::NotHere { .. } => "not_here",
            StoreError::Cut(_) | StoreError::Range(_) => "illegal_cut",
            StoreError::Locked { .. } => "busy",
            StoreError::InUse(_) => "in_use",
            _ => "io",
        };
        let hint = match &error {
            StoreError::Several { .. } => "name one of its files",
            StoreError::Gguf { .. } | StoreError::Model(_) => "download it again, or convert it again",
            StoreError::Cut(_) | StoreError::Range(_) => "potluck model show says where it may be cut",
            _ => error.hint().unwrap_or("check that the path exists and that you may read it"),
        };
        Self::new(code, with_causes(&error), hint)
    }
}
