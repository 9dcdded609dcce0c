//! Taking in a model from peers, piece by piece, so that a crash costs no more than the pieces that were under way.
//!
//! All tensors have their place in one file from the start, those that are not here are holes in it. A piece is written once
//! it has been checked; a tensor is noted in the catalogue once all its pieces are on the disk. What an earlier attempt has
//! left is found by hashing it: the file itself is the record of what has come.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::PathBuf,
};

use potluck_core::{ModelId, PieceHash, TensorEntry, piece_hash, piece_range};

use crate::{Catalogue, Entry, SourceFile, StoreError};

/// Tensors begin at multiples of this, as in a GGUF.
const ALIGNMENT: u64 = 32;

/// The file that a model's tensors are written to.
#[derive(Debug)]
pub struct Intake {
    catalogue: Catalogue,
    id: ModelId,
    path: PathBuf,
    file: File,
    /// Where each tensor lies, in the manifest's order.
    offsets: Vec<u64>,
    size: u64,
    /// Nothing was here before.
    fresh: bool,
}

impl Intake {
    /// Opens the file for a model of the catalogue; makes it where it is not there.
    ///
    /// # Errors
    /// `Unknown`, `Io`.
    pub fn open(catalogue: &Catalogue, entry: &Entry) -> Result<Self, StoreError> {
        let path = catalogue.pulled_path(entry.id);
        let mut size = 0u64;
        let offsets = entry.manifest.tensors.iter().map(|tensor| {
            let offset = size;
            // Where a manifest lies about sizes, the file system refuses the file.
            size = size.saturating_add(tensor.bytes).checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX);
            offset
        });
        let offsets = offsets.collect();
        let fresh = !path.exists();
        // What the catalogue says is here must not become holes of a file that is made anew.
        for file in entry.place.files.iter().filter(|file| file.pulled) {
            file.reopen()?;
        }
        let opened = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = opened.map_err(StoreError::io(&path))?;
        file.set_len(size).map_err(StoreError::io(&path))?;
        Ok(Self { catalogue: catalogue.clone(), id: entry.id, path, file, offsets, size, fresh })
    }

    /// True where that piece is on the disk already, from an earlier attempt.
    ///
    /// # Errors
    /// `WrongPiece` where there is no such piece; `Io`.
    pub fn has(
        &mut self,
        number: usize,
        tensor: &TensorEntry,
        piece: u64,
        hash: &PieceHash,
    ) -> Result<bool, StoreError> {
        let (offset, len) = self.place(number, tensor, piece)?;
        if self.fresh {
            return Ok(false);
        }
        let mut bytes = vec![0; len];
        let read = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(StoreError::io(&self.path))?;
        Ok(piece_hash(tensor.bytes, piece, &bytes) == *hash)
    }

    /// Checks a piece and writes it. `number`: the tensor's, in the manifest.
    ///
    /// # Errors
    /// `WrongPiece`: whoever sent it is not to be asked again; `Io`.
    pub fn write(
        &mut self,
        number: usize,
        tensor: &TensorEntry,
        piece: u64,
        hash: &PieceHash,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let (offset, len) = self.place(number, tensor, piece)?;
        if bytes.len() != len || piece_hash(tensor.bytes, piece, bytes) != *hash {
            return Err(StoreError::WrongPiece { tensor: tensor.name.clone(), number: piece });
        }
        let written = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.write_all(bytes));
        written.map_err(StoreError::io(&self.path))
    }

    /// Notes in the catalogue that all pieces of these tensors have come, by their numbers in the manifest. Their bytes are on
    /// the disk before that.
    ///
    /// # Errors
    /// `Locked`, `Io`.
    pub fn save(&mut self, entry: &Entry, complete: &[usize]) -> Result<Entry, StoreError> {
        self.file.sync_data().map_err(StoreError::io(&self.path))?;
        let (mut source, _) = SourceFile::open(&self.path)?;
        source.pulled = true;
        source.size = self.size;
        let place =
            |&number: &usize| Some((entry.manifest.tensors.get(number)?.name.clone(), *self.offsets.get(number)?));
        let complete: Vec<_> = complete.iter().filter_map(place).collect();
        self.catalogue.note_pulled(self.id, source, &complete)
    }

    fn place(&self, number: usize, tensor: &TensorEntry, piece: u64) -> Result<(u64, usize), StoreError> {
        let place = self.offsets.get(number).zip(piece_range(tensor.bytes, piece));
        let (start, (offset, len)) =
            place.ok_or_else(|| StoreError::WrongPiece { tensor: tensor.name.clone(), number: piece })?;
        Ok((start + offset, len))
    }
}
