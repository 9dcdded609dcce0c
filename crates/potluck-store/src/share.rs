//! What other peers are given of a model: pieces of its tensors, and the hashes by which they check them.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
};

use potluck_core::{PieceHash, TensorEntry, piece_hash, piece_range, pieces_of, tensor_hash};

use crate::{Entry, StoreError, stage::locate};

/// A piece of a tensor that is here, as it lies on the disk: whoever asked for it checks it.
///
/// # Errors
/// `WrongPiece` where there is none of that number; `NotHere`, `SourceMissing`, `SourceChanged`, `Io`.
pub fn read_piece(entry: &Entry, tensor: &TensorEntry, number: u64) -> Result<Vec<u8>, StoreError> {
    let (mut file, start) = open(entry, tensor)?;
    let (offset, len) = piece_range(tensor.bytes, number)
        .ok_or_else(|| StoreError::WrongPiece { tensor: tensor.name.clone(), number })?;
    read(entry, &mut file, tensor, start + offset, len)
}

/// The hashes of all pieces of a tensor that is here. Reads all of it.
///
/// # Errors
/// `Damaged` where they do not make the tensor's hash: nobody is given them. `NotHere`, `SourceMissing`, `SourceChanged`,
/// `Io`.
pub fn read_piece_hashes(entry: &Entry, tensor: &TensorEntry) -> Result<Vec<PieceHash>, StoreError> {
    let (mut file, start) = open(entry, tensor)?;
    let hash = |number| {
        let (offset, len) = piece_range(tensor.bytes, number)
            .ok_or_else(|| StoreError::WrongPiece { tensor: tensor.name.clone(), number })?;
        let piece = read(entry, &mut file, tensor, start + offset, len)?;
        Ok(piece_hash(tensor.bytes, number, &piece))
    };
    let hashes = (0..pieces_of(tensor.bytes)).map(hash).collect::<Result<Vec<_>, StoreError>>()?;
    if tensor_hash(tensor.bytes, &hashes) == Some(tensor.hash) {
        return Ok(hashes);
    }
    let path = locate(entry, &tensor.name)?.0.path.clone();
    Err(StoreError::Damaged { path, tensor: tensor.name.clone() })
}

fn open(entry: &Entry, tensor: &TensorEntry) -> Result<(File, u64), StoreError> {
    let (source, place) = locate(entry, &tensor.name)?;
    Ok((source.reopen()?, place.offset))
}

fn read(entry: &Entry, file: &mut File, tensor: &TensorEntry, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
    let mut piece = vec![0; len];
    let done = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut piece));
    match done {
        Ok(()) => Ok(piece),
        Err(error) => Err(StoreError::io(locate(entry, &tensor.name)?.0.path.clone())(error)),
    }
}
