//! Hugging Face's cache: `models--ORG--NAME/snapshots/REVISION/*.gguf`, links to blobs.

use std::{fs, path::Path};

use super::{Source, files, is_plain};
use crate::StoreError;

/// Bytes of a revision's name.
const REVISION_BYTES_MAX: usize = 128;

/// The model `ORG/NAME[/FILE]`; without a file, the only one there.
pub(super) fn find(hub: &Path, text: &str) -> Result<Source, StoreError> {
    let no_model = |what: String| StoreError::NoModel { path: hub.into(), what };
    let mut components = text.splitn(3, '/');
    let (Some(organisation), Some(name), file) = (components.next(), components.next(), components.next()) else {
        return Err(no_model(format!("`{text}` is no name of the form ORG/NAME")));
    };
    if ![organisation, name].into_iter().chain(file.into_iter().flat_map(|f| f.split('/'))).all(is_plain) {
        return Err(no_model(format!("`{text}` is no name of the form ORG/NAME[/FILE]")));
    }
    let folder = hub.join(format!("models--{organisation}--{name}"));
    let snapshot = snapshot(&folder).ok_or_else(|| no_model(format!("Hugging Face's cache has no `{text}`")))??;
    match file {
        Some(file) => files::find_file(&snapshot.join(file)),
        None => files::find_in_folder(&snapshot),
    }
}

/// The model of a folder that is a repository in the cache; none where it is not.
pub(super) fn find_repository(folder: &Path) -> Option<Result<Source, StoreError>> {
    snapshot(folder).map(|snapshot| files::find_in_folder(&snapshot?))
}

/// The snapshot that `main` points to, else the only one; none where the folder is no repository.
fn snapshot(folder: &Path) -> Option<Result<std::path::PathBuf, StoreError>> {
    let snapshots = folder.join("snapshots");
    if !snapshots.is_dir() {
        return None;
    }
    let main = fs::read_to_string(folder.join("refs/main")).unwrap_or_default();
    let revision = main.trim();
    if revision.len() <= REVISION_BYTES_MAX && is_plain(revision) && snapshots.join(revision).is_dir() {
        return Some(Ok(snapshots.join(revision)));
    }
    let mut folders: Vec<_> = fs::read_dir(&snapshots).into_iter().flatten().flatten().map(|e| e.path()).collect();
    folders.retain(|path| path.is_dir());
    Some(match <[_; 1]>::try_from(folders) {
        Ok([only]) => Ok(only),
        Err(folders) => Err(StoreError::NoModel {
            path: snapshots,
            what: format!("{} snapshots, and none of them is `main`", folders.len()),
        }),
    })
}
