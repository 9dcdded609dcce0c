//! GGUF files: one, the parts of one model, and folders of them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use walkdir::WalkDir;

use super::{Part, Source};
use crate::{StoreError, import::PARTS_MAX};

/// Folders below the one that was named in which to look.
const DEPTH_MAX: usize = 4;
/// Files of a folder to look at: more, and it is not a folder of models.
const FILES_MAX: usize = 10_000;
/// Digits of a part's number in a file's name.
const DIGITS: usize = 5;

/// The model of which `path` is the file, or one of the parts.
pub(super) fn find_file(path: &Path) -> Result<Source, StoreError> {
    if !path.is_file() {
        return Err(StoreError::NoModel { path: path.into(), what: "no such file or folder".into() });
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("model");
    match PartName::of(path) {
        None => Ok(Source { name: stem.to_owned(), parts: vec![Part::whole(path)] }),
        Some(part) if part.count == 1 => Ok(Source { name: part.base, parts: vec![Part::whole(path)] }),
        Some(part) => find_parts(path, &part),
    }
}

fn find_parts(path: &Path, part: &PartName) -> Result<Source, StoreError> {
    let missing = |what| StoreError::NoModel { path: path.into(), what };
    if part.count > PARTS_MAX {
        return Err(missing(format!("a model in {} parts; the limit is {PARTS_MAX}", part.count)));
    }
    let file = |number| path.with_file_name(part.file_name(number));
    if let Some(number) = (1..=part.count).find(|&number| !file(number).is_file()) {
        return Err(missing(format!("{} is missing beside it", part.file_name(number))));
    }
    Ok(Source { name: part.base.clone(), parts: (1..=part.count).map(|number| Part::whole(file(number))).collect() })
}

/// The only model in a folder.
pub(super) fn find_in_folder(folder: &Path) -> Result<Source, StoreError> {
    let mut models: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    // A link may be followed to a file (Hugging Face's caches are links), never to a folder: no loops.
    for entry in WalkDir::new(folder).max_depth(DEPTH_MAX).sort_by_file_name().into_iter().take(FILES_MAX).flatten() {
        let path = entry.path();
        let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        let is_projector = entry.file_name().to_string_lossy().starts_with("mmproj");
        if !is_gguf || is_projector || !path.is_file() {
            continue;
        }
        let model = PartName::of(path).map_or(path.to_owned(), |part| path.with_file_name(part.base));
        models.entry(model).or_insert_with(|| path.to_owned());
    }
    let mut paths = models.values();
    match (paths.next(), paths.next()) {
        (Some(path), None) => find_file(path),
        (None, _) => Err(StoreError::NoModel { path: folder.into(), what: "no GGUF file in this folder".into() }),
        _ => Err(StoreError::Several {
            path: folder.into(),
            names: models.values().filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned())).collect(),
        }),
    }
}

/// A part's name: `BASE-00002-of-00005.gguf`.
struct PartName {
    base: String,
    count: usize,
}

impl PartName {
    fn of(path: &Path) -> Option<Self> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (base, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| (text.len() == DIGITS).then(|| text.parse::<usize>().ok()).flatten();
        let (number, count) = (digits(number)?, digits(count)?);
        (1..=count).contains(&number).then(|| Self { base: base.to_owned(), count })
    }

    fn file_name(&self, number: usize) -> String {
        format!("{}-{number:0DIGITS$}-of-{:0DIGITS$}.gguf", self.base, self.count)
    }
}
