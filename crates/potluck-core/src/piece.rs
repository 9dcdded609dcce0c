//! Pieces: how the bytes of a tensor travel, each checked when it comes.
//!
//! A tensor's hash in the manifest is BLAKE3, which is the root of a tree over its bytes. The subtrees of [`PIECE_BYTES`]
//! each are its pieces: who knows their hashes and has seen that they make the tensor's hash can check any piece from
//! anybody, by itself. See the BLAKE3 paper, section 2.1, and `blake3::hazmat`.

use blake3::{
    Hasher,
    hazmat::{HasherExt as _, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root},
};

/// Bytes of a piece; a tensor's last one may be shorter.
pub const PIECE_BYTES: usize = 1 << 20;

const _: () = assert!(PIECE_BYTES.is_power_of_two() && PIECE_BYTES >= 1_024, "a piece is a subtree");

/// The hash of a piece: of its bytes, and of where in its tensor it lies.
pub type PieceHash = [u8; 32];

/// Pieces of a tensor of `bytes` bytes.
pub fn pieces_of(bytes: u64) -> u64 {
    bytes.div_ceil(PIECE_BYTES as u64)
}

/// Where a piece starts in its tensor of `bytes` bytes, and how long it is; none where there is no such piece.
pub fn piece_range(bytes: u64, number: u64) -> Option<(u64, usize)> {
    let start = number.checked_mul(PIECE_BYTES as u64)?;
    let left = bytes.checked_sub(start).filter(|&left| left > 0)?;
    Some((start, left.min(PIECE_BYTES as u64) as usize))
}

/// Hashes a piece of a tensor of `bytes` bytes. Of a tensor that is one piece it is the tensor's own hash.
pub fn piece_hash(bytes: u64, number: u64, piece: &[u8]) -> PieceHash {
    if bytes <= PIECE_BYTES as u64 {
        return *blake3::hash(piece).as_bytes();
    }
    let mut hasher = Hasher::new();
    hasher.set_input_offset(number * PIECE_BYTES as u64);
    hasher.update(piece);
    hasher.finalize_non_root()
}

/// The hash of the tensor of `bytes` bytes that these are the pieces of; none where their number is another.
pub fn tensor_hash(bytes: u64, pieces: &[PieceHash]) -> Option<[u8; 32]> {
    if pieces.len() as u64 != pieces_of(bytes) {
        return None;
    }
    match pieces {
        [] => Some(*blake3::hash(&[]).as_bytes()),
        [only] => Some(*only),
        _ => {
            let (left, right) = halves(bytes, pieces);
            Some(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes())
        }
    }
}

/// The hashes of a subtree's halves. The depth is the logarithm of the number of pieces.
fn halves(bytes: u64, pieces: &[PieceHash]) -> (PieceHash, PieceHash) {
    let left = left_subtree_len(bytes);
    let (first, second) = pieces.split_at((left / PIECE_BYTES as u64) as usize);
    (subtree(left, first), subtree(bytes - left, second))
}

fn subtree(bytes: u64, pieces: &[PieceHash]) -> PieceHash {
    if let [only] = pieces {
        return *only;
    }
    let (left, right) = halves(bytes, pieces);
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(data: &[u8]) -> Vec<PieceHash> {
        let chunks = data.chunks(PIECE_BYTES).enumerate();
        chunks.map(|(number, piece)| piece_hash(data.len() as u64, number as u64, piece)).collect()
    }

    #[test]
    fn the_pieces_make_the_hash_of_the_whole() {
        let data: Vec<u8> = (0..7 * PIECE_BYTES + 13).map(|i| ((i * 31) >> 7) as u8).collect();
        let sizes = [0, 1, 1_024, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES, 3 * PIECE_BYTES + 5];
        for size in sizes.into_iter().chain([4 * PIECE_BYTES, 7 * PIECE_BYTES + 13]) {
            let (data, bytes) = (&data[..size], size as u64);
            let hashes = pieces(data);
            assert_eq!(hashes.len() as u64, pieces_of(bytes), "{size}");
            assert_eq!(tensor_hash(bytes, &hashes), Some(*blake3::hash(data).as_bytes()), "{size} bytes");
        }
    }

    #[test]
    fn a_piece_is_known_by_its_bytes_and_its_place() {
        let bytes = 3 * PIECE_BYTES as u64;
        let same = vec![7; PIECE_BYTES];
        assert_ne!(piece_hash(bytes, 0, &same), piece_hash(bytes, 1, &same));
        let mut swapped = pieces(&(0..bytes).map(|i| (i >> 12) as u8).collect::<Vec<_>>());
        let whole = tensor_hash(bytes, &swapped);
        swapped.swap(0, 1);
        assert_ne!(tensor_hash(bytes, &swapped), whole);
        assert_eq!(tensor_hash(bytes, &swapped[1..]), None);
    }

    #[test]
    fn ranges_cover_a_tensor_once() {
        let bytes = 2 * PIECE_BYTES as u64 + 9;
        assert_eq!(piece_range(bytes, 0), Some((0, PIECE_BYTES)));
        assert_eq!(piece_range(bytes, 2), Some((2 * PIECE_BYTES as u64, 9)));
        assert_eq!(piece_range(bytes, 3), None);
        assert_eq!(piece_range(0, 0), None);
        assert_eq!(piece_range(bytes, u64::MAX), None);
    }
}
