//! bf16 products on AMX tiles: `Cᵀ[16 outputs][16 rows] += W[16 outputs][32 k] · Xᵀ`, with W in the checkpoint's
//! own layout. Chain of an element: one accumulator over k in steps of 32, whatever the number of rows.
//!
//! Few rows: tiles are loaded straight from the mapping while the next outputs, one contiguous region, are
//! fetched ahead. Many rows: a panel of W is copied to tiles in L2 and used for all rows.

use super::{Job, Output, pack};
use crate::backend::cpu::memory::Aligned;
use crate::backend::cpu::simd::transpose16;
use crate::backend::cpu::tile::{self, TILE_BYTES, TileSource};
use crate::error::Result;
use std::arch::x86_64::*;
use std::ops::Range;

/// Outputs of one step of either form: two tiles.
const PAIR: usize = 32;
/// Up to this many rows, W is read once from where it is mapped.
pub(super) const FEW: usize = 64;
/// Outputs of a panel of W.
pub(super) const PANEL: usize = 256;
/// Inputs of a panel of W.
const DEPTH: usize = 256;
/// Inputs multiplied at a time: x tiles of 32 rows and as many inputs stay in L1, those of W stream from L2.
const PART: usize = 256;
/// Rows whose sums are kept between the panels of one set of outputs: all of a panel's data fits L2.
const ROWS: usize = 512;

/// A thread's working memory.
#[derive(Default)]
pub(super) struct Scratch {
    panel: Aligned<u16>,
    sums: Aligned<f32>,
}

impl Scratch {
    /// Makes room for products of `m` rows with up to `k` inputs.
    pub fn reserve(&mut self, m: usize, k: usize) -> Result<()> {
        let depth = if m > FEW { DEPTH.min(k.next_multiple_of(32)) } else { k.next_multiple_of(32) };
        self.panel.resize(PANEL * depth)?;
        self.sums.resize(m.min(ROWS).next_multiple_of(32) * PANEL)
    }
}

/// Few rows: the columns of one pair of tiles. `ahead` is what this thread computes next.
///
/// # Safety
/// Tiles are configured; x are the packed tiles of m rows; columns are at most PAIR, begin at a multiple of it
/// and are nobody else's.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn few(
    job: &Job<'_>,
    columns: Range<usize>,
    x: *const u8,
    m: usize,
    ahead: *const u8,
    scratch: &mut Scratch,
) {
    let k = job.weight.cols();
    let steps = k.div_ceil(32);
    // SAFETY: by the contract; a pair that is not whole is copied, so that nothing outside W is read.
    unsafe {
        let first = job.weight.bytes().as_ptr().add(columns.start * k * 2);
        let a = if k.is_multiple_of(32) && columns.len() == PAIR {
            TileSource { first, second: first.add(16 * k * 2), rows: k * 2, step: 64 }
        } else {
            copy_pair(first, columns.len(), k, 0..k, scratch.panel.as_mut_ptr().cast());
            packed(scratch.panel.as_ptr().cast())
        };
        let sums = scratch.sums.as_mut_ptr();
        for row in (0..m).step_by(32) {
            let b = x.add(row / 32 * pack::pair_bytes(k));
            tile::zero();
            match (row == 0, row + 16 < m) {
                (true, true) => tile::multiply_2x2::<true>(a, b, steps, ahead),
                (true, false) => tile::multiply_2x1::<true>(a, b, steps, ahead),
                (false, true) => tile::multiply_2x2::<false>(a, b, steps, ahead),
                (false, false) => tile::multiply_2x1::<false>(a, b, steps, ahead),
            }
            tile::store(sums);
            write(&job.out, sums, row..(row + 32).min(m), columns.clone());
        }
    }
}

/// Many rows: the columns of one panel. `ahead` is what this thread computes next.
///
/// # Safety
/// Tiles are configured; x are the packed tiles of m rows; columns are at most PANEL, begin at a multiple of
/// it and are nobody else's.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn many(
    job: &Job<'_>,
    columns: Range<usize>,
    x: *const u8,
    m: usize,
    ahead: *const u8,
    scratch: &mut Scratch,
) {
    let k = job.weight.cols();
    // SAFETY: by the contract; the scratch was reserved for these sizes.
    unsafe {
        let first = job.weight.bytes().as_ptr().add(columns.start * k * 2);
        for rows in (0..m).step_by(ROWS).map(|start| start..(start + ROWS).min(m)) {
            let mut depth = 0;
            // At least once, so that no inputs give zeros.
            while depth < k || depth == 0 {
                let inputs = depth..(depth + DEPTH).min(k);
                let next = match (inputs.end < k, rows.end < m) {
                    (true, _) => first.wrapping_add(inputs.end * 2),
                    (false, true) => first,
                    (false, false) => ahead,
                };
                panel(job, columns.clone(), inputs, x, rows.clone(), m, next, scratch);
                depth += DEPTH;
            }
        }
    }
}

/// Adds the products of some inputs to the sums of rows and columns; the last inputs write them.
///
/// # Safety
/// As for [`many`].
#[allow(clippy::too_many_arguments)]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn panel(
    job: &Job<'_>,
    columns: Range<usize>,
    inputs: Range<usize>,
    x: *const u8,
    rows: Range<usize>,
    m: usize,
    ahead: *const u8,
    scratch: &mut Scratch,
) {
    let k = job.weight.cols();
    let pair_stride = inputs.len().div_ceil(32) * 2 * TILE_BYTES;
    let pairs = columns.len().div_ceil(PAIR);
    let pair_columns = |pair: usize| {
        let start = columns.start + pair * PAIR;
        start..(start + PAIR).min(columns.end)
    };
    // SAFETY: by the contract; the scratch was reserved for these sizes.
    unsafe {
        let panel = scratch.panel.as_mut_ptr().cast::<u8>();
        let sums = scratch.sums.as_mut_ptr();
        for pair in 0..pairs {
            let columns = pair_columns(pair);
            let first = job.weight.bytes().as_ptr().add(columns.start * k * 2);
            copy_pair(first, columns.len(), k, inputs.clone(), panel.add(pair * pair_stride));
        }
        // While this panel is used, the next one and the next rows of x are fetched, a part with each product.
        let row_lines = DEPTH.min(k) * 2 / 64;
        let products = rows.len().div_ceil(32) * pairs * inputs.len().div_ceil(PART);
        let share = (columns.len() * row_lines).div_ceil(products.max(1));
        let mut line = 0;
        let mut start = inputs.start;
        // At least once, so that no inputs give zeros.
        while start < inputs.end || start == 0 {
            let part = start..(start + PART).min(inputs.end);
            let steps = part.len().div_ceil(32);
            let offset = (part.start - inputs.start) / 32 * 2 * TILE_BYTES;
            for row in rows.clone().step_by(32) {
                let b = x.add(row / 32 * pack::pair_bytes(k) + part.start / 32 * 2 * TILE_BYTES);
                let next_rows = b.wrapping_add(pack::pair_bytes(k));
                for pair in 0..pairs {
                    for line in line..line + share {
                        let place = line / row_lines * k * 2 + line % row_lines * 64;
                        _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(place).cast());
                    }
                    line += share;
                    let kept = sums.add(((row - rows.start) / 32 * (PANEL / PAIR) + pair) * TILE_BYTES);
                    if part.start == 0 {
                        tile::zero();
                    } else {
                        tile::load(kept);
                    }
                    let a = packed(panel.add(pair * pair_stride + offset));
                    match (row + 16 < m, pair == 0) {
                        (true, true) => tile::multiply_2x2::<true>(a, b, steps, next_rows),
                        (true, false) => tile::multiply_2x2::<false>(a, b, steps, next_rows),
                        (false, _) => tile::multiply_2x1::<false>(a, b, steps, next_rows),
                    }
                    tile::store(kept);
                    if part.end == k {
                        write(&job.out, kept, row..(row + 32).min(m), pair_columns(pair));
                    }
                }
            }
            start += PART;
        }
    }
}

/// Pairs of A tiles one after the other.
fn packed(first: *const u8) -> TileSource {
    TileSource { first, second: first.wrapping_add(TILE_BYTES), rows: 64, step: 2 * TILE_BYTES }
}

/// Copies `inputs` of up to 32 rows of W to pairs of tiles, the rest zeros.
///
/// # Safety
/// AVX-512 is available; `from` is the first of `rows` rows of `k` elements; `to` has room.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn copy_pair(from: *const u8, rows: usize, k: usize, inputs: Range<usize>, to: *mut u8) {
    // SAFETY: masked elements are not read; the tiles of `inputs` are inside `to`.
    unsafe {
        for row in 0..PAIR {
            let source = from.cast::<i16>().add(if row < rows { row * k } else { 0 });
            let target = to.add(row / 16 * TILE_BYTES + row % 16 * 64);
            for (step, at) in inputs.clone().step_by(32).enumerate() {
                let left = if row < rows { (inputs.end - at).min(32) } else { 0 };
                let mask = ((1u64 << left) - 1) as u32;
                let line = _mm512_maskz_loadu_epi16(mask, source.wrapping_add(at));
                _mm512_storeu_si512(target.add(step * 2 * TILE_BYTES).cast(), line);
            }
        }
    }
}

/// Writes four product tiles `[16 outputs][16 rows]` to rows and columns of the output.
///
/// # Safety
/// AVX-512 is available; sums are four tiles; rows and columns (at most 32 each) are inside and this thread's.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn write(out: &Output, sums: *const f32, rows: Range<usize>, columns: Range<usize>) {
    // SAFETY: by the contract; masked columns are neither read nor written.
    unsafe {
        for (part, first) in columns.clone().step_by(16).enumerate() {
            let mask = ((1u32 << (columns.end - first).min(16)) - 1) as u16;
            let bias =
                if out.bias.is_null() { _mm512_setzero_ps() } else { _mm512_maskz_loadu_ps(mask, out.bias.add(first)) };
            for (half, row) in rows.clone().step_by(16).enumerate() {
                let tile = sums.add((part * 2 + half) * TILE_BYTES / 4);
                let mut lines = [_mm512_setzero_ps(); 16];
                for (i, line) in lines.iter_mut().enumerate() {
                    *line = _mm512_loadu_ps(tile.add(i * 16));
                }
                let lines = transpose16(lines);
                for (i, line) in lines.iter().enumerate().take(rows.end - row) {
                    let place = out.ptr.add((row + i) * out.stride + first);
                    let mut value = *line;
                    if !out.bias.is_null() {
                        value = _mm512_add_ps(value, bias);
                    }
                    if out.add {
                        value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, place), value);
                    }
                    _mm512_mask_storeu_ps(place, mask, value);
                }
            }
        }
    }
}
