//! A fixed rotation of a row: random signs, then Walsh-Hadamard transforms of its pieces.
//!
//! It spreads what few channels hold over all of a piece, so that the values of a block come to look alike and one step fits
//! them. A row is cut into pieces, each the largest power of two that is left, up to [`PIECE_MAX`].
//! Source: QuaRot, Ashkboos et al., arXiv:2404.00456; the order of additions is ours and is part of the encoding.

/// Values of the largest piece: larger ones cost a pass more and spread little better.
pub(super) const PIECE_MAX: usize = 1024;

/// Values that one tile of a transform holds.
const TILE: usize = 16;

/// Bits to flip of each value of a piece: a sign, or none.
pub(super) const SIGNS: [u32; PIECE_MAX] = signs();

/// From the bits of SplitMix64, whose seed is `potluck` in ASCII.
const fn signs() -> [u32; PIECE_MAX] {
    let mut signs = [0; PIECE_MAX];
    let mut state: u64 = 0x70_6f74_6c75_636b;
    let mut at = 0;
    while at < PIECE_MAX {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        signs[at] = ((z ^ (z >> 31)) >> 32) as u32 & 0x8000_0000;
        at += 1;
    }
    signs
}

/// Calls `each` with the pieces of a row, first to last, and the binary logarithm of their length.
pub(super) fn pieces(mut row: &mut [f32], mut each: impl FnMut(&mut [f32], i32)) {
    while !row.is_empty() {
        let log = row.len().min(PIECE_MAX).ilog2();
        let (piece, rest) = row.split_at_mut(1 << log);
        each(piece, log as i32);
        row = rest;
    }
}

/// Multiplies a piece by the Hadamard matrix of its length, `n` (a power of two up to [`PIECE_MAX`]): done twice, it multiplies by
/// `n`. The matrix is Sylvester's with rows permuted within tiles of 16 such that it stays symmetric.
pub(super) fn transform(piece: &mut [f32]) {
    let (tiles, _) = piece.as_chunks_mut::<TILE>();
    if tiles.is_empty() {
        let mut stride = 1;
        while stride < piece.len() {
            halves(piece, stride);
            stride *= 2;
        }
        return;
    }
    tiles.iter_mut().for_each(tile);
    let mut stride = TILE;
    while stride * 4 <= piece.len() {
        quarters(piece, stride);
        stride *= 4;
    }
    if stride < piece.len() {
        halves(piece, stride);
    }
}

/// Sums and differences of each pair of values `stride` apart.
fn halves(piece: &mut [f32], stride: usize) {
    for pair in piece.chunks_exact_mut(2 * stride) {
        let (low, high) = pair.split_at_mut(stride);
        for (a, b) in low.iter_mut().zip(high) {
            (*a, *b) = (*a + *b, *a - *b);
        }
    }
}

/// What [`halves`] does at `stride` and then at twice that, in one pass.
fn quarters(piece: &mut [f32], stride: usize) {
    for four in piece.chunks_exact_mut(4 * stride) {
        let (low, high) = four.split_at_mut(2 * stride);
        let ((a, b), (c, d)) = (low.split_at_mut(stride), high.split_at_mut(stride));
        let (a, b) = (a.as_chunks_mut::<TILE>().0, b.as_chunks_mut::<TILE>().0);
        let (c, d) = (c.as_chunks_mut::<TILE>().0, d.as_chunks_mut::<TILE>().0);
        for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
            [*a, *b, *c, *d] = butterfly([*a, *b, *c, *d]);
        }
    }
}

/// The sixteen values of a tile: across its four rows, then, turned over, across what were its columns.
fn tile(values: &mut [f32; TILE]) {
    let mut rows = [[0.0; 4]; 4];
    rows.iter_mut().zip(values.as_chunks::<4>().0).for_each(|(row, values)| *row = *values);
    let [a, b, c, d] = butterfly(rows);
    let turned = std::array::from_fn(|at| [a[at], b[at], c[at], d[at]]);
    let rows = butterfly::<4>(turned);
    values.as_chunks_mut::<4>().0.iter_mut().zip(rows).for_each(|(values, row)| *values = row);
}

/// Four rows by the Hadamard matrix of four.
fn butterfly<const N: usize>([a, b, c, d]: [[f32; N]; 4]) -> [[f32; N]; 4] {
    let (mut s, mut t, mut u, mut v) = (a, b, c, d);
    for at in 0..N {
        let (ab, a_b) = (a[at] + b[at], a[at] - b[at]);
        let (cd, c_d) = (c[at] + d[at], c[at] - d[at]);
        (s[at], t[at], u[at], v[at]) = (ab + cd, a_b + c_d, ab - cd, a_b - c_d);
    }
    [s, t, u, v]
}
