//! What a peer shares: all that its machine has of the models that it serves.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use potluck_core::{ModelId, PieceHash, TensorEntry};
use potluck_net::{Question, Shelf};
use potluck_store::{Catalogue, Entry, StoreError, read_piece, read_piece_hashes};
use potluck_wire::{
    Failure, FailureCode, Fetch, Frame, Held, MODELS_MAX, NAME_BYTES_MAX, PART_BYTES_MAX, PIECE_HASHES_MAX, Part,
    SharedModel,
};

/// How long the catalogue's entry is not read again: layers may be added while the peer serves.
const FRESH: Duration = Duration::from_secs(2);

/// The models of a catalogue that a peer shares: those that it was told to.
#[derive(Clone)]
pub struct Library(Arc<Mutex<Shared>>);

struct Shared {
    folder: PathBuf,
    models: BTreeMap<ModelId, Option<(Instant, Arc<Here>)>>,
    /// By model and tensor. What has been hashed once is not read again for it.
    hashes: HashMap<(ModelId, usize), Hashes>,
}

/// The hashes of a tensor's pieces, or why there are none: made once, whoever asks meanwhile waits for them.
type Hashes = Arc<OnceLock<Result<Arc<Vec<PieceHash>>, Failure>>>;

/// A model as it lies here.
struct Here {
    entry: Entry,
    manifest: Vec<u8>,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Library")
    }
}

impl Library {
    /// Nothing of the catalogue in `folder` yet.
    pub fn new(folder: PathBuf) -> Self {
        Self(Arc::new(Mutex::new(Shared { folder, models: BTreeMap::new(), hashes: HashMap::new() })))
    }

    /// Shares that model, too: what is here of it.
    pub fn share(&self, model: ModelId) {
        self.lock().models.entry(model).or_default();
    }

    /// What a peer answers from.
    pub fn shelf(&self) -> Shelf {
        let library = self.clone();
        Shelf::new(move |question| match question {
            Question::Models => library.list(),
            Question::Part(fetch) => library.answer(fetch),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self) -> Result<Frame, Failure> {
        let models: Vec<_> = self.lock().models.keys().copied().take(MODELS_MAX).collect();
        let here = models.into_iter().filter_map(|model| self.here(model).transpose());
        Ok(Frame::Models(here.map(|here| Ok(listed(&here?.entry))).collect::<Result<_, Failure>>()?))
    }

    /// The model as it is now, or was a moment ago; none where it is not shared, or was removed.
    fn here(&self, model: ModelId) -> Result<Option<Arc<Here>>, Failure> {
        let mut shared = self.lock();
        let folder = shared.folder.clone();
        let Some(known) = shared.models.get_mut(&model) else { return Ok(None) };
        if let Some((since, here)) = known
            && since.elapsed() < FRESH
        {
            return Ok(Some(here.clone()));
        }
        match Catalogue::open(&folder).and_then(|catalogue| catalogue.get(&model.to_string())) {
            Ok(entry) => {
                let here = Arc::new(Here { manifest: entry.manifest.encode(), entry });
                *known = Some((Instant::now(), here.clone()));
                Ok(Some(here))
            }
            Err(StoreError::Unknown(_)) => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }

    fn answer(&self, fetch: Fetch) -> Result<Frame, Failure> {
        let not_here = |what: &str| Failure::new(FailureCode::NotServed, what);
        let here = self.here(fetch.model)?.ok_or_else(|| not_here("this model is not shared here"))?;
        let tensors = &here.entry.manifest.tensors;
        let tensor = |number: u32| {
            let tensor = tensors.get(number as usize).filter(|tensor| here.entry.has(tensor));
            tensor.ok_or_else(|| not_here("this tensor is not here"))
        };
        // Who is asked for a model uses it.
        self.note_use(fetch.model);
        match fetch.part {
            Part::Held => {
                let mut bits = vec![0u8; tensors.len().div_ceil(8)];
                for (number, _) in tensors.iter().enumerate().filter(|(_, tensor)| here.entry.has(tensor)) {
                    bits[number / 8] |= 1 << (number % 8);
                }
                Ok(Frame::Held(Held { manifest_bytes: here.manifest.len() as u32, tensors: bits }))
            }
            Part::Manifest(from) => {
                let rest = here.manifest.get(from as usize..).unwrap_or_default();
                Ok(Frame::Part(rest[..rest.len().min(PART_BYTES_MAX)].to_vec()))
            }
            Part::Hashes(number, first) => {
                let hashes = self.hashes(&here, number as usize, tensor(number)?)?;
                let rest = hashes.get(first as usize..).unwrap_or_default();
                Ok(Frame::Part(rest[..rest.len().min(PIECE_HASHES_MAX)].concat()))
            }
            Part::Piece(number, piece) => {
                let read = read_piece(&here.entry, tensor(number)?, piece.into());
                Ok(Frame::Part(read.map_err(|error| failed(&error))?))
            }
        }
    }

    fn note_use(&self, model: ModelId) {
        let folder = self.lock().folder.clone();
        if let Err(error) = Catalogue::open(&folder).and_then(|catalogue| catalogue.note_use(model)) {
            tracing::warn!("that a model was asked for could not be noted: {error}");
        }
    }

    fn hashes(&self, here: &Here, number: usize, tensor: &TensorEntry) -> Result<Arc<Vec<PieceHash>>, Failure> {
        let hashes = self.lock().hashes.entry((here.entry.id, number)).or_default().clone();
        let read = || read_piece_hashes(&here.entry, tensor).map(Arc::new).map_err(|error| failed(&error));
        hashes.get_or_init(read).clone()
    }
}

fn listed(entry: &Entry) -> SharedModel {
    let mut name = entry.name.clone();
    while name.len() > NAME_BYTES_MAX {
        name.pop();
    }
    let manifest = &entry.manifest;
    SharedModel {
        model: entry.id,
        name,
        layers: manifest.layers(),
        bytes: manifest.bytes(),
        held_bytes: entry.held_bytes(),
    }
}

/// What another may know of it: our paths are our own.
fn failed(error: &StoreError) -> Failure {
    match error {
        // Whoever asks for what is not there is told so, and nobody else.
        StoreError::WrongPiece { .. } => {}
        error => tracing::warn!("a part of a model could not be given: {error}"),
    }
    Failure::new(FailureCode::NotServed, "it cannot be read here now")
}
