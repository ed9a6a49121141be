//! Scratch memory of AMX attention: where each operand and result of one thread lies.

use super::{Scratch, TILE};
use crate::backend::cpu::tile::TILE_BYTES;

/// Number of floats in four tiles.
pub(super) const FOUR: usize = 4 * TILE_BYTES / 4;

/// Number of floats of scratch needed for `queries` columns.
pub(super) fn scratch_len(dim: usize, queries: usize) -> usize {
    let (pairs, dims) = (queries.div_ceil(32), dim.div_ceil(32));
    // In order: K, V, rows, Q, scores, weights, sums, maxima and totals, positions.
    4 * TILE * dims * 16 + pairs * dims * FOUR / 2 + 3 * FOUR + pairs * dims * FOUR + 3 * pairs * 32
}

/// Pointers into one thread's scratch, one per operand.
pub(super) struct Parts {
    pub kv: Kv,
    /// Queries as `[pair][dim / 32][2]` tiles.
    pub queries: *mut u8,
    pub scores: *mut f32,
    pub weights: *mut u8,
    /// Output sums as `[pair][dim / 32]` times four tiles: (dims, columns), (dims, columns + 16),
    /// (dims + 16, columns), (dims + 16, columns + 16).
    pub sums: *mut f32,
    pub maxima: *mut f32,
    pub totals: *mut f32,
    pub positions: *mut i32,
    pub dims: usize,
    pub columns: usize,
}

impl Parts {
    /// # Safety
    /// `scratch` holds at least `scratch_len` floats.
    pub unsafe fn new(scratch: &mut Scratch, dim: usize, columns: usize) -> Parts {
        let (pairs, dims) = (columns.div_ceil(32), dim.div_ceil(32));
        let mut at = scratch.floats.as_mut_ptr();
        let mut take = |floats: usize| {
            let part = at;
            // SAFETY: the sizes of all parts add up to scratch_len.
            at = unsafe { at.add(floats) };
            part
        };
        Parts {
            kv: Kv {
                keys: take(TILE * dims * 16).cast(),
                values: take(TILE * dims * 16).cast(),
                rows: take(2 * TILE * dims * 16).cast(),
                dims,
            },
            queries: take(pairs * dims * FOUR / 2).cast(),
            scores: take(2 * FOUR),
            weights: take(FOUR).cast(),
            sums: take(pairs * dims * FOUR),
            maxima: take(pairs * 32),
            totals: take(pairs * 32),
            positions: take(pairs * 32).cast(),
            dims,
            columns,
        }
    }
}

/// Keys and values of one tile of positions, as AMX operands.
pub(super) struct Kv {
    /// `[TILE][dims * 32]`, with zeros for missing positions and dimensions.
    pub keys: *mut u8,
    /// `[dims][2][2]` tiles: for each 32 dimensions and 32 positions, two tiles of `[16 dims][32 positions]`.
    pub values: *mut u8,
    /// `[2][TILE][dims * 32]`: rows of int8 K and V, widened to bf16 before they are laid out.
    pub rows: *mut u16,
    /// Head dimension in steps of 32, rounded up.
    pub dims: usize,
}
