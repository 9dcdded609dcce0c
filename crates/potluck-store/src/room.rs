//! Room on the disk for what is to come: a quota, and what was used longest ago makes way.
//!
//! Whoever pulls asks for room first, under the catalogue's lock, and is promised it: until the promise is dropped, others count what is to
//! come as if it were here, and leave it alone. A promise is a file that its process locks; one that nobody locks any more is swept
//! away by the next who locks the catalogue. What is removed goes as a whole, its entry first: a crash in between leaves files without
//! an entry, which are swept away, too.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use potluck_core::ModelId;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::{
    Catalogue, Fetched, StoreError,
    fetched::{self, Found, key_of},
};

/// How the names of promises start.
pub(crate) const PROMISE_PREFIX: &str = "room-";

/// Bytes of a promise's file: what is longer is none.
const PROMISE_BYTES_MAX: u64 = 4 << 10;

/// What Potluck may fill.
#[derive(Debug, Clone)]
pub struct Room {
    catalogue: Catalogue,
    downloads: PathBuf,
    quota: Option<u64>,
    reserve: u64,
}

/// What room is made for.
#[derive(Debug, Clone, Copy)]
pub enum For<'a> {
    /// Tensors of this model of the catalogue, which has so many bytes in all.
    Model(ModelId, u64),
    /// A file in this folder of the downloads.
    Download(&'a Path),
    /// A file in a store of another program's: it counts for the free disk alone.
    Elsewhere,
}

/// Room that was promised, until this is dropped.
#[derive(Debug)]
pub struct Promise {
    /// What was removed for it, the longest unused first.
    pub removed: Vec<Fetched>,
    _file: Option<NamedTempFile>,
}

/// What the promise's file says: this will take so many bytes in all.
#[derive(Debug, Serialize, Deserialize)]
struct Promised {
    key: String,
    bytes: u64,
}

impl Room {
    /// For this catalogue, and this folder of downloads. `quota`: bytes that what was fetched never exceeds; without one nothing is
    /// removed to make room. `reserve`: bytes of the disk that are left to others.
    pub fn new(catalogue: Catalogue, downloads: PathBuf, quota: Option<u64>, reserve: u64) -> Self {
        Self { catalogue, downloads, quota, reserve }
    }

    /// All that was fetched.
    ///
    /// # Errors
    /// `Locked`, `Io`.
    pub fn fetched(&self) -> Result<Vec<Fetched>, StoreError> {
        let _lock = self.catalogue.lock()?;
        Ok(self.find(&self.promises())?.into_iter().map(|found| found.fetched).collect())
    }

    /// Makes room for `bytes` more, and promises it. `free`: bytes that are free on the disk where they are to go, where that is known.
    ///
    /// # Errors
    /// `NoRoom`, and nothing is removed; `Locked`, `Io`.
    pub fn make(&self, what: For<'_>, bytes: u64, free: Option<u64>) -> Result<Promise, StoreError> {
        let _lock = self.catalogue.lock()?;
        let promises = self.promises();
        let found = self.find(&promises)?;
        let key = what.key();
        let state = State::of(&found, &promises, key.as_deref());
        let wanted = what.wanted(state.own, bytes);
        let limits = Limits {
            quota: self.quota.filter(|_| key.is_some()),
            free: free.map(|free| free.saturating_sub(self.reserve)),
            // What lies in our folders may be on another disk than that.
            may_remove: self.quota.is_some() && key.is_some(),
        };
        let chosen = choose(&found, key.as_deref(), &state, wanted, &limits)?;
        let removed = chosen.into_iter().map(|number| self.remove_found(&found[number]));
        let removed = removed.collect::<Result<Vec<_>, StoreError>>()?;
        let file =
            key.map(|key| self.promise(&Promised { key, bytes: state.own.saturating_add(wanted) })).transpose()?;
        Ok(Promise { removed, _file: file })
    }

    /// Forgets a model, and removes what was fetched of it; files that were added where they lie stay. What was removed; none where
    /// nothing was fetched.
    ///
    /// # Errors
    /// `InUse` where something was fetched and somebody uses it; `Locked`, `Io`.
    pub fn remove(&self, id: ModelId) -> Result<Option<Fetched>, StoreError> {
        let _lock = self.catalogue.lock()?;
        let found = self.find(&self.promises())?.into_iter().find(|found| found.fetched.model == Some(id));
        match found {
            Some(found) if found.fetched.in_use => Err(StoreError::InUse(found.fetched.name)),
            Some(found) => self.remove_found(&found).map(Some),
            None => self.catalogue.remove_files(id).map(|()| None),
        }
    }

    /// Removes what is left of downloads that broke off; then, of models, those that were used longest ago, until no more than `keep`
    /// bytes are left of all that was fetched. What is in use stays.
    ///
    /// # Errors
    /// `Locked`, `Io`.
    pub fn prune(&self, keep: Option<u64>) -> Result<Vec<Fetched>, StoreError> {
        let _lock = self.catalogue.lock()?;
        let found = self.find(&self.promises())?;
        let mut left = found.iter().map(|found| found.fetched.bytes).fold(0, u64::saturating_add);
        let mut removed = Vec::new();
        for number in by_use(&found, None) {
            let Fetched { model, bytes, .. } = found[number].fetched;
            if model.is_none() || keep.is_some_and(|keep| left > keep) {
                removed.push(self.remove_found(&found[number])?);
                left -= bytes;
            }
        }
        Ok(removed)
    }

    fn find(&self, promises: &[Promised]) -> Result<Vec<Found>, StoreError> {
        let mut found = fetched::find(&self.catalogue, &self.downloads)?;
        for found in &mut found {
            // Between the end of a download and its entry in the catalogue, its promise is all that protects it.
            found.fetched.in_use |= promises.iter().any(|promised| found.fetched.is(&promised.key));
        }
        Ok(found)
    }

    fn remove_found(&self, found: &Found) -> Result<Fetched, StoreError> {
        let fetched = &found.fetched;
        if let Some(id) = fetched.model {
            self.catalogue.remove_files(id)?;
        }
        for folder in &fetched.folders {
            fs::remove_dir_all(folder).map_err(StoreError::io(folder))?;
        }
        Ok(fetched.clone())
    }

    /// The promises of processes that live.
    fn promises(&self) -> Vec<Promised> {
        let read = |path: PathBuf| {
            let small = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= PROMISE_BYTES_MAX);
            small.then(|| serde_json::from_slice(&fs::read(path).ok()?).ok())?
        };
        live_promises(self.catalogue.folder()).filter_map(read).collect()
    }

    fn promise(&self, promised: &Promised) -> Result<NamedTempFile, StoreError> {
        let folder = self.catalogue.folder();
        let write = || {
            let mut file = tempfile::Builder::new().prefix(PROMISE_PREFIX).tempfile_in(folder)?;
            file.as_file().lock()?;
            file.write_all(&serde_json::to_vec(promised)?)?;
            Ok(file)
        };
        write().map_err(StoreError::io(folder))
    }
}

/// The promises that somebody locks; the others are removed. To be called under the catalogue's lock.
pub(crate) fn live_promises(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let promises = files.filter(|file| file.file_name().to_string_lossy().starts_with(PROMISE_PREFIX));
    promises.map(|file| file.path()).filter(|path| {
        let Ok(file) = File::open(path) else { return false };
        let live = file.try_lock().is_err();
        if !live {
            let _ = fs::remove_file(path);
        }
        live
    })
}

impl For<'_> {
    fn key(&self) -> Option<String> {
        match self {
            Self::Model(id, _) => Some(id.to_string()),
            Self::Download(folder) => Some(key_of(folder)),
            Self::Elsewhere => None,
        }
    }

    /// Bytes beyond those that are there or promised: a model never has more than all of it, whatever an earlier attempt has left.
    fn wanted(&self, own: u64, bytes: u64) -> u64 {
        match self {
            Self::Model(_, all) => bytes.min(all.saturating_sub(own)),
            Self::Download(_) | Self::Elsewhere => bytes,
        }
    }
}

/// What is there, and what is to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    /// Of what room is made for: what is there or promised.
    own: u64,
    /// Of everything: what is there.
    here: u64,
    /// Of everything: what is promised and not there yet.
    coming: u64,
}

impl State {
    fn of(found: &[Found], promises: &[Promised], key: Option<&str>) -> Self {
        let here_of =
            |key: &str| found.iter().find(|found| found.fetched.is(key)).map_or(0, |found| found.fetched.bytes);
        let promised_of = |key: &str| promises.iter().filter(|p| p.key == key).map(|p| p.bytes).max().unwrap_or(0);
        let mut keys: Vec<_> = promises.iter().map(|promised| promised.key.as_str()).collect();
        keys.sort_unstable();
        keys.dedup();
        Self {
            own: key.map_or(0, |key| here_of(key).max(promised_of(key))),
            here: found.iter().map(|found| found.fetched.bytes).fold(0, u64::saturating_add),
            coming: keys.iter().map(|key| promised_of(key).saturating_sub(here_of(key))).fold(0, u64::saturating_add),
        }
    }
}

/// What must not be exceeded.
#[derive(Debug, Clone, Copy)]
struct Limits {
    quota: Option<u64>,
    /// Bytes of the disk, less those that are left to others.
    free: Option<u64>,
    may_remove: bool,
}

/// What may be removed, the longest unused first.
fn by_use(found: &[Found], key: Option<&str>) -> Vec<usize> {
    let removable = |fetched: &Fetched| !fetched.in_use && !key.is_some_and(|key| fetched.is(key));
    let mut numbers: Vec<usize> = (0..found.len()).filter(|&number| removable(&found[number].fetched)).collect();
    numbers.sort_by_key(|&number| (found[number].fetched.used, &found[number].fetched.name));
    numbers
}

/// What has to go, so that `wanted` bytes find room.
fn choose(
    found: &[Found],
    key: Option<&str>,
    state: &State,
    wanted: u64,
    limits: &Limits,
) -> Result<Vec<usize>, StoreError> {
    let by_quota = limits.quota.map(|quota| i128::from(quota) - i128::from(state.here) - i128::from(state.coming));
    let by_disk = limits.free.map(|free| i128::from(free) - i128::from(state.coming));
    let room = [by_quota, by_disk].into_iter().flatten().min().unwrap_or(i128::MAX);
    let mut short = i128::from(wanted).saturating_sub(room);
    // What is here already needs no more of it, however full the disk is.
    if short <= 0 || wanted == 0 {
        return Ok(Vec::new());
    }
    let removable = by_use(found, key).into_iter().filter(|&number| found[number].fetched.bytes > 0);
    let mut chosen = Vec::new();
    for number in removable.filter(|_| limits.may_remove) {
        chosen.push(number);
        short -= i128::from(found[number].fetched.bytes);
        if short <= 0 {
            return Ok(chosen);
        }
    }
    let list = |wanted: &dyn Fn(&Fetched) -> bool| {
        // What is to come needs no room that it has already.
        let others = found.iter().map(|found| &found.fetched).filter(|fetched| !key.is_some_and(|key| fetched.is(key)));
        let listed = others.filter(|fetched| wanted(fetched));
        listed.map(|fetched| (fetched.name.clone(), fetched.bytes)).collect()
    };
    Err(StoreError::NoRoom {
        wanted,
        short: u64::try_from(short).unwrap_or(u64::MAX),
        // The quota is named where it alone is in the way.
        quota: limits.quota.filter(|_| by_disk.is_none_or(|disk| Some(room) == by_quota && disk >= i128::from(wanted))),
        in_use: list(&|fetched| fetched.in_use),
        removable: if limits.may_remove { Vec::new() } else { list(&|fetched| !fetched.in_use && fetched.bytes > 0) },
    })
}
