//! What a peer shares: all that its machine has of the model that it serves.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use potluck_core::{ModelId, PieceHash};
use potluck_net::{Question, Shelf};
use potluck_store::{Catalogue, Entry, StoreError, read_piece, read_piece_hashes};
use potluck_wire::{
    Failure, FailureCode, Fetch, Frame, Held, NAME_BYTES_MAX, PART_BYTES_MAX, PIECE_HASHES_MAX, Part, SharedModel,
};

/// How long the catalogue's entry is not read again: layers may be added while the peer serves.
const FRESH: Duration = Duration::from_secs(2);

/// The shelf of a peer that serves this model of the catalogue in `folder`.
pub fn shelf(folder: PathBuf, model: ModelId) -> Shelf {
    let shared = Mutex::new(SharedHere { folder, model, entry: None, hashes: HashMap::new() });
    let shared = Arc::new(shared);
    Shelf::new(move |question| match question {
        Question::Models => {
            Ok(Frame::Models(SharedHere::entry(&shared)?.iter().map(|here| listed(&here.entry)).collect()))
        }
        Question::Part(fetch) => answer(&shared, fetch),
    })
}

struct SharedHere {
    folder: PathBuf,
    model: ModelId,
    entry: Option<(Instant, Arc<Here>)>,
    /// By tensor. What has been hashed once is not read again for it.
    hashes: HashMap<usize, Arc<Vec<PieceHash>>>,
}

struct Here {
    entry: Entry,
    manifest: Vec<u8>,
}

impl SharedHere {
    /// The entry as it is now, or was a moment ago; none where it has been removed.
    fn entry(shared: &Mutex<Self>) -> Result<Option<Arc<Here>>, Failure> {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, here)) = &shared.entry
            && since.elapsed() < FRESH
        {
            return Ok(Some(here.clone()));
        }
        let read = Catalogue::open(&shared.folder).and_then(|catalogue| catalogue.get(&shared.model.to_string()));
        match read {
            Ok(entry) => {
                let here = Arc::new(Here { manifest: entry.manifest.encode(), entry });
                shared.entry = Some((Instant::now(), here.clone()));
                Ok(Some(here))
            }
            Err(StoreError::Unknown(_)) => Ok(None),
            Err(error) => Err(failed(&error)),
        }
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

fn answer(shared: &Mutex<SharedHere>, fetch: Fetch) -> Result<Frame, Failure> {
    let not_here = |what: &str| Failure::new(FailureCode::NotServed, what);
    let here = SharedHere::entry(shared)?.filter(|here| here.entry.id == fetch.model);
    let here = here.ok_or_else(|| not_here("this model is not shared here"))?;
    let tensors = &here.entry.manifest.tensors;
    let tensor = |number: u32| {
        let tensor = tensors.get(number as usize).filter(|tensor| here.entry.has(tensor));
        tensor.ok_or_else(|| not_here("this tensor is not here"))
    };
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
            let tensor = tensor(number)?;
            let known = {
                let shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                shared.hashes.get(&(number as usize)).cloned()
            };
            let hashes = match known {
                Some(hashes) => hashes,
                None => {
                    let hashes = Arc::new(read_piece_hashes(&here.entry, tensor).map_err(|error| failed(&error))?);
                    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    shared.hashes.insert(number as usize, hashes.clone());
                    hashes
                }
            };
            let rest = hashes.get(first as usize..).unwrap_or_default();
            Ok(Frame::Part(rest[..rest.len().min(PIECE_HASHES_MAX)].concat()))
        }
        Part::Piece(number, piece) => {
            let read = read_piece(&here.entry, tensor(number)?, piece.into());
            Ok(Frame::Part(read.map_err(|error| failed(&error))?))
        }
    }
}

/// What another may know of it: our paths are our own.
fn failed(error: &StoreError) -> Failure {
    tracing::warn!("a part of a model could not be given: {error}");
    Failure::new(FailureCode::NotServed, "it cannot be read here now")
}
