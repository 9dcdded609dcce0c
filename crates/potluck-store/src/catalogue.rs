//! The catalogue: two files a model, written so that a crash leaves either the old entry or the new one.
//!
//! ```text
//! DIR/lock                 held while an entry is written or removed
//! DIR/ID.manifest          the canonical bytes of the manifest; their hash is ID
//! DIR/ID.json              name and place; written last, removed first: no entry without it
//! DIR/ID.tensors           what was pulled from peers: all tensors in the manifest's order, those that are not here as holes
//! DIR/ID.proof             the signed note of what was proven of its codecs, where that was done
//! DIR/ID.use               locked by all who use the model; written when it was used last
//! DIR/room-*               room that was promised to a pull, locked by its process
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use potluck_core::{Manifest, ModelId, TensorEntry};
use serde::{Deserialize, Serialize};

use crate::{Place, Progress, Source, SourceFile, StoreError, TensorPlace, hold::MARK, import, room::live_promises};

/// How long to wait for another process that writes an entry; entries are small.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How often to look whether it is done.
const LOCK_POLL: Duration = Duration::from_millis(20);
/// Characters of a model's name.
const NAME_CHARS_MAX: usize = 128;
/// Characters of an id that name a model.
const ID_PREFIX_MIN: usize = 4;
/// How the names of files start that are still being written.
const PARTIAL_PREFIX: &str = ".partial-";
/// The files of a model beside its entry.
const OWNED: [&str; 4] = ["manifest", "tensors", PROOF, MARK];
/// The file of the note of what was proven.
const PROOF: &str = "proof";
/// Version of the JSON beside a manifest.
const ENTRY_VERSION: u32 = 2;

/// The models of this machine.
#[derive(Debug, Clone)]
pub struct Catalogue {
    folder: PathBuf,
}

/// A model of the catalogue.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its id.
    pub id: ModelId,
    /// What the user calls it.
    pub name: String,
    /// What it is.
    pub manifest: Manifest,
    /// Where it lies.
    pub place: Place,
}

/// What [`Catalogue::add`] did.
#[derive(Debug, Clone, PartialEq)]
pub struct Added {
    /// The entry as it is now.
    pub entry: Entry,
    /// True if the model was known before, perhaps from another place.
    pub known: bool,
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    name: String,
    place: Place,
}

impl Entry {
    /// Makes sure that its files are still what they were when it was added.
    ///
    /// # Errors
    /// `SourceMissing`, `SourceChanged`, `Io`.
    pub fn check(&self) -> Result<(), StoreError> {
        self.place.check()
    }

    /// True where every tensor of the model is here.
    pub fn is_whole(&self) -> bool {
        self.place.tensors.len() == self.manifest.tensors.len()
    }

    /// True where this tensor is here.
    pub fn has(&self, tensor: &TensorEntry) -> bool {
        self.place.tensors.contains_key(&tensor.name)
    }

    /// Bytes of the tensors that are here.
    pub fn held_bytes(&self) -> u64 {
        self.manifest.tensors.iter().filter(|tensor| self.has(tensor)).map(|tensor| tensor.bytes).sum()
    }

    pub(crate) fn damaged(&self, what: &str) -> StoreError {
        StoreError::Catalogue { path: PathBuf::from(format!("{}.json", self.id)), what: what.to_owned() }
    }
}

impl Catalogue {
    /// The catalogue in `folder`, which is made where it is missing.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(StoreError::io(&folder))?;
        Ok(Self { folder })
    }

    /// Where the catalogue lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Adds a model, or notes where a known one lies now. Reads all of it once.
    ///
    /// # Errors
    /// As [`import()`](crate::import()); `NameTaken`, `BadName`, `Locked`.
    pub fn add(
        &self,
        source: &Source,
        name: Option<&str>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Added, StoreError> {
        if let Some(name) = name {
            check_name(name)?;
        }
        let imported = import(source, progress)?;
        let (id, bytes) = (imported.manifest.id(), imported.manifest.encode());
        if bytes.len() > potluck_core::bounds::MANIFEST_BYTES_MAX {
            return Err(potluck_core::ManifestError::TooLarge(bytes.len()).into());
        }
        let _lock = self.lock()?;
        let known = self.read(id).ok();
        let name = self.choose_name(id, name, known.as_ref(), &source.name)?;
        write(&self.path(id, "manifest"), &bytes)?;
        let entry = Entry { id, name, manifest: imported.manifest, place: imported.place };
        self.write_record(&entry)?;
        // What had been pulled of it is no longer read.
        self.remove(id, "tensors")?;
        Ok(Added { entry, known: known.is_some() })
    }

    /// Notes a model that is known by its manifest alone, or what is known of it already. `name`: what its holder calls it; one
    /// that reads as an id or as a place is not taken over from a stranger.
    ///
    /// # Errors
    /// `Manifest` where it is too large, `Model` where it is no model that the engine could load; `Locked`, `Io`.
    pub fn note(&self, manifest: Manifest, name: &str) -> Result<Entry, StoreError> {
        potluck_model::check(&manifest)?;
        let bytes = manifest.encode();
        if bytes.len() > potluck_core::bounds::MANIFEST_BYTES_MAX {
            return Err(potluck_core::ManifestError::TooLarge(bytes.len()).into());
        }
        let id = manifest.id();
        let _lock = self.lock()?;
        if let Ok(known) = self.read(id) {
            return Ok(known);
        }
        let own = format!("model-{}", id.short());
        let name = self.choose_name(id, None, None, if misleads(name) { &own } else { name })?;
        write(&self.path(id, "manifest"), &bytes)?;
        let place = Place { files: Vec::new(), ggufs: Vec::new(), tensors: BTreeMap::new() };
        let entry = Entry { id, name, manifest, place };
        self.write_record(&entry)?;
        Ok(entry)
    }

    /// Notes that these tensors (by name, with their offsets) are in the model's file of pulled ones now.
    pub(crate) fn note_pulled(
        &self,
        id: ModelId,
        file: SourceFile,
        tensors: &[(String, u64)],
    ) -> Result<Entry, StoreError> {
        let _lock = self.lock()?;
        let mut entry = self.read(id)?;
        if entry.is_whole() {
            return Ok(entry);
        }
        entry.place.files = vec![file];
        let places = tensors.iter().map(|(name, offset)| (name.clone(), TensorPlace { file: 0, offset: *offset }));
        entry.place.tensors.extend(places);
        self.write_record(&entry)?;
        Ok(entry)
    }

    /// Keeps the signed note of what was proven of a model, in place of an earlier one.
    ///
    /// # Errors
    /// `Unknown` where it is not in the catalogue; `Locked`, `Io`.
    pub fn write_proof(&self, id: ModelId, note: &[u8]) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        if !self.path(id, "json").exists() {
            return Err(StoreError::Unknown(id.to_string()));
        }
        write(&self.path(id, PROOF), note)
    }

    /// The note of what was proven of a model, as it lies there: whoever reads it checks it. No more than `bytes_max` bytes and
    /// one are read.
    ///
    /// # Errors
    /// `Io`; no error where there is none.
    pub fn proof(&self, id: ModelId, bytes_max: usize) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(id, PROOF);
        let mut note = Vec::new();
        match File::open(&path).and_then(|file| file.take(bytes_max as u64 + 1).read_to_end(&mut note)) {
            Ok(_) => Ok(Some(note)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io(path)(e)),
        }
    }

    /// Where the tensors of a pulled model lie.
    pub(crate) fn pulled_path(&self, id: ModelId) -> PathBuf {
        self.path(id, "tensors")
    }

    fn write_record(&self, entry: &Entry) -> Result<(), StoreError> {
        let path = self.path(entry.id, "json");
        let record = Record { version: ENTRY_VERSION, name: entry.name.clone(), place: entry.place.clone() };
        let json = serde_json::to_vec_pretty(&record)
            .map_err(|e| StoreError::Catalogue { path: path.clone(), what: e.to_string() })?;
        write(&path, &json)
    }

    fn choose_name(
        &self,
        id: ModelId,
        wanted: Option<&str>,
        known: Option<&Entry>,
        default: &str,
    ) -> Result<String, StoreError> {
        let others: Vec<Entry> = self.list()?.into_iter().filter(|entry| entry.id != id).collect();
        let taken = |name: &str| others.iter().any(|entry| entry.name == name);
        match (wanted, known) {
            (Some(name), _) if taken(name) => Err(StoreError::NameTaken(name.to_owned())),
            (Some(name), _) => Ok(name.to_owned()),
            (None, Some(entry)) => Ok(entry.name.clone()),
            (None, None) if taken(default) || check_name(default).is_err() => Ok(format!("model-{}", id.short())),
            (None, None) => Ok(default.to_owned()),
        }
    }

    /// All models, by name. An entry that cannot be read is left out; [`get`](Self::get) says why.
    ///
    /// # Errors
    /// `Io`.
    pub fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let mut entries: Vec<Entry> = self.ids()?.into_iter().filter_map(|id| self.read(id).ok()).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name).then(a.id.cmp(&b.id)));
        Ok(entries)
    }

    /// A model by its name, by its id or the first digits of it, or by the path of one of its files.
    ///
    /// # Errors
    /// `Unknown`, `Ambiguous`; `Catalogue` where its entry is damaged; `Io`.
    pub fn get(&self, text: &str) -> Result<Entry, StoreError> {
        if let Ok(id) = text.parse::<ModelId>() {
            // A whole id is nobody's name.
            return match self.read(id) {
                Err(StoreError::NoModel { .. }) => Err(StoreError::Unknown(text.to_owned())),
                read => read,
            };
        }
        let entries = self.list()?;
        if let Some(entry) = entries.iter().find(|entry| entry.name == text) {
            return Ok(entry.clone());
        }
        let ids: Vec<ModelId> = self.ids()?.into_iter().filter(|id| begins_with(id, text)).collect();
        if let [id] = *ids.as_slice() {
            return self.read(id);
        }
        if !ids.is_empty() {
            let candidates = ids.iter().map(ModelId::to_string).collect();
            return Err(StoreError::Ambiguous { text: text.to_owned(), candidates });
        }
        let path = fs::canonicalize(text).ok();
        let holds = |entry: &&Entry| entry.place.files.iter().any(|file| Some(&file.path) == path.as_ref());
        entries.iter().find(holds).cloned().ok_or_else(|| StoreError::Unknown(text.to_owned()))
    }

    /// Forgets a model, whoever uses it. Its files stay; what was pulled from peers is removed.
    ///
    /// # Errors
    /// `Locked`, `Io`; no error where it is not there.
    pub fn rm(&self, id: ModelId) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        self.remove_files(id)
    }

    /// The same, under the catalogue's lock. The entry goes first: what a crash leaves after that, the next writer sweeps.
    pub(crate) fn remove_files(&self, id: ModelId) -> Result<(), StoreError> {
        ["json"].into_iter().chain(OWNED).try_for_each(|suffix| self.remove(id, suffix))?;
        sync_folder(&self.folder)
    }

    fn remove(&self, id: ModelId, suffix: &str) -> Result<(), StoreError> {
        let path = self.path(id, suffix);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io(path)(e)),
            _ => Ok(()),
        }
    }

    pub(crate) fn path(&self, id: ModelId, suffix: &str) -> PathBuf {
        self.folder.join(format!("{id}.{suffix}"))
    }

    /// All models, those with a damaged entry included.
    pub(crate) fn ids(&self) -> Result<Vec<ModelId>, StoreError> {
        let files = fs::read_dir(&self.folder).map_err(StoreError::io(&self.folder))?;
        let names = files.flatten().map(|file| file.file_name());
        Ok(names.filter_map(|name| name.to_str()?.strip_suffix(".json")?.parse().ok()).collect())
    }

    fn read(&self, id: ModelId) -> Result<Entry, StoreError> {
        let path = self.path(id, "json");
        let damaged = |what: String| StoreError::Catalogue { path: path.clone(), what };
        let json = fs::read(&path).map_err(StoreError::io(&path))?;
        let record: Record = serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))?;
        if record.version != ENTRY_VERSION {
            return Err(damaged(format!("version {}; this build knows {ENTRY_VERSION}", record.version)));
        }
        let bytes = fs::read(self.path(id, "manifest")).map_err(|e| damaged(format!("its manifest: {e}")))?;
        let manifest = Manifest::decode(&bytes).map_err(|e| damaged(e.to_string()))?;
        if *blake3::hash(&bytes).as_bytes() != *id.as_bytes() || !record.place.fits(&manifest) {
            return Err(damaged("manifest, place and id do not belong together".into()));
        }
        Ok(Entry { id, name: record.name, manifest, place: record.place })
    }

    /// Held until dropped; the system lets go of it when the process dies.
    pub(crate) fn lock(&self) -> Result<File, StoreError> {
        let path = self.folder.join("lock");
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(StoreError::io(&path))?;
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match file.try_lock() {
                Ok(()) => {
                    self.sweep();
                    return Ok(file);
                }
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOCK_POLL),
                Err(TryLockError::WouldBlock) => return Err(StoreError::Locked { path }),
                Err(TryLockError::Error(e)) => return Err(StoreError::io(path)(e)),
            }
        }
    }
}

impl Catalogue {
    /// Removes what a crash left half written, or half removed: whoever holds the lock is the only one who writes.
    fn sweep(&self) {
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for file in files {
            let name = file.file_name();
            let name = name.to_string_lossy();
            // What cannot be removed now is in nobody's way, and the next writer tries again.
            if name.starts_with(PARTIAL_PREFIX) || self.is_orphan(&name) {
                let _ = fs::remove_file(file.path());
            }
        }
        live_promises(&self.folder).for_each(drop);
    }

    /// True for a file of a model that has no entry.
    fn is_orphan(&self, name: &str) -> bool {
        let model = name.rsplit_once('.').filter(|(_, suffix)| OWNED.contains(suffix));
        let id = model.and_then(|(id, _)| id.parse::<ModelId>().ok());
        id.is_some_and(|id| !self.path(id, "json").exists())
    }
}

/// Whether text is long enough to name an id by its first digits, and does.
pub fn begins_with(id: &ModelId, text: &str) -> bool {
    text.len() >= ID_PREFIX_MIN && id.to_string().starts_with(&text.to_ascii_lowercase())
}

/// True for what would be taken for an id or a place, or shows otherwise than it is.
fn misleads(name: &str) -> bool {
    let id = name.len() >= ID_PREFIX_MIN && name.chars().all(|c| c.is_ascii_hexdigit());
    let place = name.contains(['/', '\\']) || ["hf:", "ollama:", "http:", "https:"].iter().any(|p| name.starts_with(p));
    // What turns the direction of writing, and joins what is not seen.
    let unseen =
        |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    id || place || name.chars().any(unseen)
}

fn check_name(name: &str) -> Result<(), StoreError> {
    let fits = (1..=NAME_CHARS_MAX).contains(&name.chars().count());
    let plain = !name.starts_with('-') && !name.chars().any(char::is_control) && name.trim() == name;
    if fits && plain { Ok(()) } else { Err(StoreError::BadName(name.to_owned())) }
}

/// Writes a file whole or not at all: beside it, to the disk, then renamed over it.
fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(PARTIAL_PREFIX).tempfile_in(folder).map_err(StoreError::io(path))?;
    file.write_all(bytes).map_err(StoreError::io(path))?;
    file.as_file().sync_all().map_err(StoreError::io(path))?;
    file.persist(path).map_err(|e| StoreError::io(path)(e.error))?;
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io(folder))
}
