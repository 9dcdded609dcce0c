//! Who uses a model, and when it was used last.
//!
//! `DIR/ID.use` is locked by all who use the model, together; whoever removes the model locks it alone. The system lets go of a lock when
//! its process ends, however it ends. The file's time of writing is when the model was used last. It is made and removed only under
//! the catalogue's own lock, so that nobody locks a file that is gone.

use std::{
    fs::{self, File, TryLockError},
    ops::Deref,
    sync::Arc,
    time::{Duration, SystemTime},
};

use potluck_core::ModelId;

use crate::{Catalogue, Entry, StoreError};

/// How the file is called that says who uses a model.
pub(crate) const MARK: &str = "use";

/// A use is not noted again for so long: it is written to the disk each time.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// A model that this process uses: until the last clone is dropped, nothing of it is removed to make room, by any process.
#[derive(Debug, Clone)]
pub struct InUse {
    entry: Entry,
    mark: Arc<Mark>,
}

/// The lock. Its release is a use, too.
#[derive(Debug)]
struct Mark(File);

impl Drop for Mark {
    fn drop(&mut self) {
        // What a crash forgets here was noted when the use began.
        let _ = self.0.set_modified(SystemTime::now());
    }
}

impl Deref for InUse {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl InUse {
    /// The same model, as the catalogue has it now.
    #[must_use]
    pub fn renewed(&self, entry: Entry) -> Self {
        debug_assert_eq!(entry.id, self.entry.id, "what is held is this model");
        Self { entry, mark: self.mark.clone() }
    }

    /// Notes that it is still used.
    ///
    /// # Errors
    /// `Io`.
    pub fn note(&self) -> Result<(), StoreError> {
        let noted = self.mark.0.set_modified(SystemTime::now()).and_then(|()| self.mark.0.sync_all());
        noted.map_err(StoreError::io(format!("{}.{MARK}", self.entry.id)))
    }
}

impl Catalogue {
    /// Uses a model from now on: its entry as it is now, which stays as long as what this returns.
    ///
    /// # Errors
    /// `Unknown` where it was removed meanwhile; `Catalogue`, `Locked`, `Io`.
    pub fn hold(&self, id: ModelId) -> Result<InUse, StoreError> {
        let _lock = self.lock()?;
        let entry = self.get(&id.to_string())?;
        let file = self.mark(id)?;
        // Who locks it alone has the catalogue's lock, which is ours now.
        file.lock_shared().map_err(StoreError::io(self.path(id, MARK)))?;
        let held = InUse { entry, mark: Arc::new(Mark(file)) };
        held.note()?;
        Ok(held)
    }

    /// Notes that a model was asked for. What was noted a moment ago is not noted again.
    ///
    /// # Errors
    /// `Locked`, `Io`.
    pub fn note_use(&self, id: ModelId) -> Result<(), StoreError> {
        let lately = |used: SystemTime| used.elapsed().is_ok_and(|age| age < NOTE_EVERY);
        if self.last_used(id).is_some_and(lately) {
            return Ok(());
        }
        let _lock = self.lock()?;
        if !self.path(id, "json").exists() {
            return Ok(());
        }
        let file = self.mark(id)?;
        file.set_modified(SystemTime::now()).and_then(|()| file.sync_all()).map_err(StoreError::io(self.path(id, MARK)))
    }

    /// When a model was used last; none where it never was.
    pub fn last_used(&self, id: ModelId) -> Option<SystemTime> {
        fs::metadata(self.path(id, MARK)).and_then(|metadata| metadata.modified()).ok()
    }

    /// True while any process uses it.
    ///
    /// # Errors
    /// `Locked`, `Io`.
    pub fn is_in_use(&self, id: ModelId) -> Result<bool, StoreError> {
        let _lock = self.lock()?;
        Ok(self.hold_alone(id)?.is_none())
    }

    /// Locks a model for its removal, until dropped; none where somebody uses it. To be called under the catalogue's lock.
    pub(crate) fn hold_alone(&self, id: ModelId) -> Result<Option<Alone>, StoreError> {
        let path = self.path(id, MARK);
        let file = match File::open(&path) {
            Ok(file) => file,
            // Never used.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Some(Alone(None))),
            Err(error) => return Err(StoreError::io(path)(error)),
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(Alone(Some(file)))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(StoreError::io(path)(error)),
        }
    }

    fn mark(&self, id: ModelId) -> Result<File, StoreError> {
        let path = self.path(id, MARK);
        let opened = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        opened.map_err(StoreError::io(path))
    }
}

/// A model that nobody uses, and nobody begins to use meanwhile.
#[derive(Debug)]
pub(crate) struct Alone(#[expect(dead_code, reason = "held until dropped")] Option<File>);
