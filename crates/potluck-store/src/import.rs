//! From a source to a manifest: read the headers, hash each tensor, note where it lies.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{BufReader, Read, Seek as _, SeekFrom},
    path::Path,
};

use potluck_core::Manifest;
use potluck_model::{
    gguf::{self, Header},
    manifest_of,
};

use crate::{GgufPlace, Part, Place, Source, SourceFile, StoreError, TensorPlace};

/// Bytes read at once while hashing.
const CHUNK_BYTES: usize = 1 << 20;
/// Parts of one model: more are refused.
pub(crate) const PARTS_MAX: usize = 1_024;

const _: () = assert!(PARTS_MAX <= u16::MAX as usize, "a part's number fits a tensor's place");

/// How far a long read has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A model as it was found: what it is, and where it lies.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// What it is.
    pub manifest: Manifest,
    /// Where it lies.
    pub place: Place,
}

/// Reads a source once: every tensor is hashed. `progress` is called about once a megabyte.
///
/// # Errors
/// `Gguf` and `Model` where it is no model; `NoModel` where parts are missing; `SourceChanged` where somebody writes
/// to it meanwhile; `Io`.
pub fn import(source: &Source, progress: &mut dyn FnMut(Progress)) -> Result<Imported, StoreError> {
    if source.parts.is_empty() || source.parts.len() > PARTS_MAX {
        let what = format!("a model in {} parts; the limit is {PARTS_MAX}", source.parts.len());
        return Err(StoreError::NoModel { path: source.path().into(), what });
    }
    let opened = source.parts.iter().map(Opened::open).collect::<Result<Vec<_>, _>>()?;
    check_split(source.path(), &opened)?;
    let hashes = hash_all(&opened, progress)?;
    let headers: Vec<&Header> = opened.iter().map(|part| &part.header).collect();
    let manifest = manifest_of(&headers, |part, tensor| hashes.get(&(part, tensor.name.as_str())).copied())?;
    opened.iter().try_for_each(|part| part.source.unchanged(&part.file))?;
    Ok(Imported { manifest, place: place(&opened) })
}

/// A part that is open, its header read.
struct Opened {
    source: SourceFile,
    file: File,
    header: Header,
    /// Where in the file the GGUF lies.
    gguf: GgufPlace,
}

impl Opened {
    fn open(part: &Part) -> Result<Self, StoreError> {
        let (source, mut file) = SourceFile::open(&part.path)?;
        let end = part.len.map_or(Some(source.size), |len| part.start.checked_add(len));
        let Some(len) = end.filter(|&end| end <= source.size).and_then(|end| end.checked_sub(part.start)) else {
            return Err(StoreError::SourceChanged { path: source.path });
        };
        file.seek(SeekFrom::Start(part.start)).map_err(StoreError::io(&source.path))?;
        let header = gguf::read(BufReader::with_capacity(CHUNK_BYTES, &file), len)
            .map_err(|error| StoreError::Gguf { path: source.path.clone(), source: error })?;
        Ok(Self { source, file, header, gguf: GgufPlace { start: part.start, len } })
    }

    fn offset(&self, tensor: &gguf::TensorInfo) -> u64 {
        self.gguf.start + self.header.data_offset + tensor.offset
    }
}

/// What the files say about how they were split agrees with the files that are there.
fn check_split(path: &Path, parts: &[Opened]) -> Result<(), StoreError> {
    let wrong = |what: String| Err(StoreError::NoModel { path: path.into(), what });
    for (number, part) in parts.iter().enumerate() {
        let count = part.header.number("split.count").unwrap_or(1).max(1);
        if count != parts.len() as u64 {
            return wrong(format!("part {} of {count}, but {} are here", number + 1, parts.len()));
        }
        if part.header.number("split.no").is_some_and(|no| no != number as u64) {
            return wrong(format!("{} is not part {}", part.source.path.display(), number + 1));
        }
    }
    let tensors: usize = parts.iter().map(|part| part.header.tensors.len()).sum();
    match parts[0].header.number("split.tensors.count") {
        Some(count) if count != tensors as u64 => wrong(format!("{tensors} of {count} tensors are here")),
        _ => Ok(()),
    }
}

type Hashes<'a> = HashMap<(usize, &'a str), [u8; 32]>;

/// The hashes of all tensors, read in the order in which they lie in their files.
fn hash_all<'a>(parts: &'a [Opened], progress: &mut dyn FnMut(Progress)) -> Result<Hashes<'a>, StoreError> {
    let total = parts.iter().flat_map(|part| &part.header.tensors).map(|t| t.bytes).sum();
    let mut done = 0;
    let mut hashes = HashMap::new();
    for (number, part) in parts.iter().enumerate() {
        let mut tensors: Vec<_> = part.header.tensors.iter().collect();
        tensors.sort_by_key(|t| t.offset);
        for tensor in tensors {
            let hash = hash_range(&part.file, part.offset(tensor), tensor.bytes, &mut |bytes| {
                done += bytes;
                progress(Progress { done, total });
            });
            hashes.insert((number, tensor.name.as_str()), hash.map_err(StoreError::io(&part.source.path))?);
        }
    }
    Ok(hashes)
}

/// BLAKE3 of `len` bytes of `file` from `offset`; `read` is told of each chunk.
pub(crate) fn hash_range(
    mut file: &File,
    offset: u64,
    len: u64,
    read: &mut dyn FnMut(u64),
) -> std::io::Result<[u8; 32]> {
    file.seek(SeekFrom::Start(offset))?;
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(len).unwrap_or(CHUNK_BYTES))];
    let mut left = len;
    while left > 0 {
        let step = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.read_exact(&mut chunk[..step])?;
        hasher.update(&chunk[..step]);
        left -= step as u64;
        read(step as u64);
    }
    Ok(*hasher.finalize().as_bytes())
}

fn place(parts: &[Opened]) -> Place {
    let mut tensors = BTreeMap::new();
    for (number, part) in parts.iter().enumerate() {
        for tensor in &part.header.tensors {
            let place = TensorPlace { file: number as u16, offset: part.offset(tensor) };
            tensors.insert(tensor.name.clone(), place);
        }
    }
    Place {
        files: parts.iter().map(|part| part.source.clone()).collect(),
        ggufs: parts.iter().map(|part| part.gguf).collect(),
        tensors,
    }
}
