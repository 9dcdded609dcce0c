//! What Potluck has fetched, and could fetch again: the only bytes that it counts, and the only ones that it removes.
//!
//! They are the tensors that were pulled from peers (`DIR/ID.tensors`), and what came from addresses of the web, a folder each, in a
//! folder of downloads. Files that were added where they lie, and the stores of other programs, are others' own.

use std::{
    collections::BTreeSet,
    fs::{self, File, Metadata},
    path::{Path, PathBuf},
    time::SystemTime,
};

use potluck_core::ModelId;

use crate::{Catalogue, Entry, StoreError, hold::Alone};

/// How the names of files end that a download's process locks.
const DOWNLOAD_LOCK: &str = ".incomplete.lock";

/// Something that was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// What the user calls it; of a download that is no model of the catalogue's, its folder.
    pub name: String,
    /// The model; none for what is left of a download that broke off.
    pub model: Option<ModelId>,
    /// Bytes on the disk.
    pub bytes: u64,
    /// When it was used last, or came.
    pub used: Option<SystemTime>,
    /// True while any process uses it, or fetches it.
    pub in_use: bool,
    /// Its folders among the downloads.
    pub(crate) folders: Vec<PathBuf>,
}

/// The same, locked where nobody uses it, for as long as the catalogue is.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) fetched: Fetched,
    pub(crate) _alone: Option<Alone>,
}

impl Fetched {
    /// True where this is what a pull fills: a model by its id, a download by its folder.
    pub(crate) fn is(&self, key: &str) -> bool {
        self.model.is_some_and(|id| id.to_string() == key) || self.folders.iter().any(|folder| key_of(folder) == key)
    }
}

/// What a folder of downloads is called where room is made for it.
pub(crate) fn key_of(folder: &Path) -> String {
    format!("downloads/{}", folder.file_name().unwrap_or_default().to_string_lossy())
}

/// All that was fetched, by name. To be called under the catalogue's lock.
pub(crate) fn find(catalogue: &Catalogue, downloads: &Path) -> Result<Vec<Found>, StoreError> {
    // Places are without links.
    let downloads = fs::canonicalize(downloads).unwrap_or_else(|_| downloads.to_owned());
    let mut found = Vec::new();
    let mut named = BTreeSet::new();
    for id in catalogue.ids()? {
        // A damaged entry's tensors take their room, too.
        let entry = catalogue.get(&id.to_string()).ok();
        let folders = entry.as_ref().map(|entry| folders_of(entry, &downloads)).unwrap_or_default();
        let tensors = fs::metadata(catalogue.pulled_path(id)).ok();
        if tensors.is_none() && folders.is_empty() {
            continue;
        }
        let held = entry.as_ref().map_or(0, Entry::held_bytes);
        let came = tensors.as_ref().and_then(|tensors| tensors.modified().ok());
        let bytes = tensors.map_or(0, |tensors| held.max(allocated(&tensors)));
        let bytes = folders.iter().map(|folder| bytes_in(folder)).fold(bytes, u64::saturating_add);
        named.extend(folders.iter().cloned());
        let alone = catalogue.hold_alone(id)?;
        let used =
            catalogue.last_used(id).or(came).or_else(|| folders.iter().filter_map(|folder| last_written(folder)).max());
        let name = entry.map_or_else(|| id.short(), |entry| entry.name);
        let in_use = alone.is_none() || folders.iter().any(|folder| is_locked(folder));
        let fetched = Fetched { name, model: Some(id), bytes, used, in_use, folders };
        found.push(Found { fetched, _alone: alone });
    }
    for folder in folders_in(&downloads).into_iter().filter(|folder| !named.contains(folder)) {
        let fetched = Fetched {
            name: key_of(&folder),
            model: None,
            bytes: bytes_in(&folder),
            used: last_written(&folder),
            in_use: is_locked(&folder),
            folders: vec![folder],
        };
        found.push(Found { fetched, _alone: None });
    }
    found.sort_by(|a, b| a.fetched.name.cmp(&b.fetched.name));
    Ok(found)
}

/// Bytes that a file takes: of one with holes, what is not a hole.
#[cfg(unix)]
fn allocated(metadata: &Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    /// The unit of `st_blocks`, whatever the file system's own is.
    const BLOCK_BYTES: u64 = 512;
    metadata.blocks().saturating_mul(BLOCK_BYTES).min(metadata.len())
}

#[cfg(not(unix))]
fn allocated(metadata: &Metadata) -> u64 {
    metadata.len()
}

/// The folders of downloads that a model's files lie in.
fn folders_of(entry: &Entry, downloads: &Path) -> Vec<PathBuf> {
    let folder = |path: &Path| Some(downloads.join(path.strip_prefix(downloads).ok()?.components().next()?));
    let folders: BTreeSet<_> = entry.place.files.iter().filter_map(|file| folder(&file.path)).collect();
    folders.into_iter().collect()
}

fn folders_in(downloads: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(downloads).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn files_in(folder: &Path) -> impl Iterator<Item = (PathBuf, Metadata)> {
    let files = walkdir::WalkDir::new(folder).into_iter().flatten().filter(|file| file.file_type().is_file());
    files.filter_map(|file| Some((file.path().to_owned(), file.metadata().ok()?)))
}

fn bytes_in(folder: &Path) -> u64 {
    files_in(folder).map(|(_, metadata)| metadata.len()).fold(0, u64::saturating_add)
}

fn last_written(folder: &Path) -> Option<SystemTime> {
    files_in(folder).filter_map(|(_, metadata)| metadata.modified().ok()).max()
}

/// True while a process downloads into it.
fn is_locked(folder: &Path) -> bool {
    let locks = files_in(folder).filter(|(path, _)| path.to_string_lossy().ends_with(DOWNLOAD_LOCK));
    locks.into_iter().any(|(path, _)| File::open(path).is_ok_and(|file| file.try_lock().is_err()))
}
