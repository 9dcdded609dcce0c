//! What the engine reads, in place; and whether it is still what was added.

use std::{collections::BTreeMap, fs::File};

use potluck_core::LayerRange;
use potluck_model::{Extent, StagePlan, StageSource};

use crate::{Entry, Progress, StoreError, import::hash_range};

/// A stage to load: the extents, and the open files that they index.
#[derive(Debug)]
pub struct StageFiles {
    /// Open for reading; only those that the stage needs.
    pub files: Vec<File>,
    /// The virtual GGUF and the embedding table, over [`files`](Self::files).
    pub source: StageSource,
}

/// Opens what a stage reads. The files are checked against what was added: same size, same time of writing.
///
/// # Errors
/// `SourceMissing` and `SourceChanged`, hint `potluck model add`; `Catalogue` where the plan is of another model; `Io`.
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
    let extent = |name: &str, offset: u64, len: u64| {
        let tensor = entry.manifest.tensor(name)?;
        let (_, place) = entry.place.tensor(name, tensor.bytes)?;
        let inside = offset.checked_add(len)? <= tensor.bytes;
        inside.then(|| Some(Extent::File { file: *numbers.get(&place.file)?, offset: place.offset + offset, len }))?
    };
    let source = plan.resolve(extent).ok_or_else(|| entry.damaged("a tensor of the plan has no place"))?;
    Ok(StageFiles { files, source })
}

fn locate<'e>(entry: &'e Entry, name: &str) -> Result<(&'e crate::SourceFile, crate::TensorPlace), StoreError> {
    let tensor = entry.manifest.tensor(name);
    tensor
        .and_then(|tensor| entry.place.tensor(name, tensor.bytes))
        .ok_or_else(|| entry.damaged(&format!("the tensor `{name}` has no place")))
}

/// Hashes the tensors of `layers` again (none: all tensors) and compares them with the manifest.
///
/// # Errors
/// `Damaged` at the first tensor that differs; `SourceMissing`, `SourceChanged`, `Io`.
pub fn verify(entry: &Entry, layers: Option<LayerRange>, progress: &mut dyn FnMut(Progress)) -> Result<(), StoreError> {
    let files = entry.place.files.iter().map(crate::SourceFile::reopen).collect::<Result<Vec<_>, _>>()?;
    let chosen = |layer: Option<u32>| layers.is_none_or(|range| layer.is_some_and(|l| range.contains(l)));
    let tensors: Vec<_> = entry.manifest.tensors.iter().filter(|t| chosen(t.layer)).collect();
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
