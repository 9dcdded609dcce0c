//! What the engine reads, in place; and whether it is still what was added.

use std::{collections::BTreeMap, fs::File};

use potluck_core::LayerRange;
use potluck_model::{Extent, StagePlan, StageSource, VirtualFile, slice};

use crate::{Entry, Progress, StoreError, import::hash_range};

/// A stage to load: the extents, and the open files that they index.
#[derive(Debug)]
pub struct StageFiles {
    /// Open for reading; only those that the stage needs.
    pub files: Vec<File>,
    /// The virtual GGUF and the embedding table, over [`files`](Self::files).
    pub source: StageSource,
}

/// A whole model to load: one GGUF over the open files.
#[derive(Debug)]
pub struct WholeFiles {
    /// Open for reading.
    pub files: Vec<File>,
    /// The GGUF, over [`files`](Self::files).
    pub model: VirtualFile,
}

/// Opens what a stage reads. The files are checked against what was added: same size, same time of writing.
///
/// # Errors
/// `NotHere`, hint `potluck model pull`; `SourceMissing` and `SourceChanged`, hint `potluck model add`; `Catalogue` where the plan is of another model; `Io`.
pub fn open_stage(entry: &Entry, plan: &StagePlan) -> Result<StageFiles, StoreError> {
    let mut files = Vec::new();
    let mut numbers: BTreeMap<u16, u16> = BTreeMap::new();
    for name in plan.tensors() {
        let (source, place) = locate(entry, name)?;
        if let std::collections::btree_map::Entry::Vacant(number) = numbers.entry(place.file) {
            number.insert(files.len() as u16);
            files.push(source.reopen()?);
        }
    }
    let number = |file| numbers.get(&file).copied();
    let source = plan.resolve(|name, offset, len| extent(entry, number, name, offset, len));
    let source = source.ok_or_else(|| entry.damaged("a tensor of the plan has no place"))?;
    Ok(StageFiles { files, source })
}

/// Opens the whole model as one GGUF. One that lies in one piece is read as it is, header and all; of several parts the
/// headers are merged, for the engine reads one file.
///
/// # Errors
/// As [`open_stage`].
pub fn open_whole(entry: &Entry) -> Result<WholeFiles, StoreError> {
    entry.manifest.tensors.iter().try_for_each(|tensor| locate(entry, &tensor.name).map(drop))?;
    let files = entry.place.files.iter().map(crate::SourceFile::reopen).collect::<Result<Vec<_>, _>>()?;
    let model = match entry.place.ggufs.as_slice() {
        &[gguf] => VirtualFile::new(vec![Extent::File { file: 0, offset: gguf.start, len: gguf.len }]),
        _ => {
            slice::resolve(&slice::merged(&entry.manifest)?, |name, offset, len| extent(entry, Some, name, offset, len))
                .ok_or_else(|| entry.damaged("a tensor of the model has no place"))?
        }
    };
    Ok(WholeFiles { files, model })
}

/// Where a part of a tensor lies; `number`: of a file of the place, among those that are open.
fn extent(entry: &Entry, number: impl Fn(u16) -> Option<u16>, name: &str, offset: u64, len: u64) -> Option<Extent> {
    let tensor = entry.manifest.tensor(name)?;
    let (_, place) = entry.place.tensor(name, tensor.bytes)?;
    let inside = offset.checked_add(len)? <= tensor.bytes;
    inside.then(|| Some(Extent::File { file: number(place.file)?, offset: place.offset + offset, len }))?
}

pub(crate) fn locate<'e>(
    entry: &'e Entry,
    name: &str,
) -> Result<(&'e crate::SourceFile, crate::TensorPlace), StoreError> {
    let Some(tensor) = entry.manifest.tensor(name) else {
        return Err(entry.damaged(&format!("the tensor `{name}` is not the model's")));
    };
    if !entry.has(tensor) {
        return Err(StoreError::NotHere { model: entry.name.clone(), tensor: name.to_owned() });
    }
    let place = entry.place.tensor(name, tensor.bytes);
    place.ok_or_else(|| entry.damaged(&format!("the tensor `{name}` has no place")))
}

/// Hashes the tensors of `layers` that are here again (none: all tensors) and compares them with the manifest.
///
/// # Errors
/// `Damaged` at the first tensor that differs; `SourceMissing`, `SourceChanged`, `Io`.
pub fn verify(entry: &Entry, layers: Option<LayerRange>, progress: &mut dyn FnMut(Progress)) -> Result<(), StoreError> {
    let files = entry.place.files.iter().map(crate::SourceFile::reopen).collect::<Result<Vec<_>, _>>()?;
    let chosen = |layer: Option<u32>| layers.is_none_or(|range| layer.is_some_and(|l| range.contains(l)));
    let tensors: Vec<_> = entry.manifest.tensors.iter().filter(|t| chosen(t.layer) && entry.has(t)).collect();
    let total = tensors.iter().map(|t| t.bytes).sum();
    let mut done = 0;
    for tensor in tensors {
        let (source, place) = locate(entry, &tensor.name)?;
        let hash = hash_range(&files[place.file as usize], place.offset, tensor.bytes, &mut |bytes| {
            done += bytes;
            progress(Progress { done, total });
        });
        if hash.map_err(StoreError::io(&source.path))? != tensor.hash {
            return Err(StoreError::Damaged { path: source.path.clone(), tensor: tensor.name.clone() });
        }
    }
    Ok(())
}
