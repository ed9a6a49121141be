//! bf16 products on AMX tiles: `Cᵀ[16 outputs][16 rows] += W[16 outputs][32 k] · Xᵀ`, with W in the checkpoint's
//! own layout. Each output element has one accumulator, which runs over k in steps of 32, however many rows there are.
//!
//! With few rows, tiles are loaded directly from the mapped checkpoint, while the next outputs, which are one
//! contiguous region, are prefetched. With many rows, a panel of W is copied to tiles in L2 and used for all rows.

use super::{Job, Output, pack};
use crate::backend::cpu::memory::Aligned;
use crate::backend::cpu::simd::transpose16;
use crate::backend::cpu::tile::{self, TILE_BYTES, TileSource};
use crate::error::Result;
use std::arch::x86_64::*;
use std::ops::Range;

/// Outputs computed per step: two tiles.
const PAIR: usize = 32;
/// Largest number of rows for which W is read directly from the mapped checkpoint.
pub(super) const FEW: usize = 64;
/// Number of outputs in a panel of W.
pub(super) const PANEL: usize = 256;
/// Number of inputs in a panel of W.
const DEPTH: usize = 256;
/// Inputs multiplied at a time. 32 rows of x with this many inputs stay in L1, while tiles of W stream from L2.
const PART: usize = 256;
/// Rows whose sums are kept from one panel to the next of the same outputs. All data of a panel then fits in L2.
const ROWS: usize = 512;

/// Working memory of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    panel: Aligned<u16>,
    sums: Aligned<f32>,
}

impl Scratch {
    /// Reserves space for products of `m` rows with up to `k` inputs.
    pub fn reserve(&mut self, m: usize, k: usize) -> Result<()> {
        let depth = if m > FEW { DEPTH.min(k.next_multiple_of(32)) } else { k.next_multiple_of(32) };
        self.panel.resize(PANEL * depth)?;
        self.sums.resize(m.min(ROWS).next_multiple_of(32) * PANEL)
    }
}

/// Computes the columns of one pair of tiles, for few rows. `ahead` points to the weights this thread needs next.
///
/// # Safety
/// Tiles are configured. `x` points to the packed tiles of m rows. `columns` begins at a multiple of PAIR, has at
/// most PAIR columns, and no other thread writes them.
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
    // SAFETY: the caller upholds this function's contract. A partial pair is copied, so nothing outside W is read.
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

/// Computes the columns of one panel, for many rows. `ahead` points to the weights this thread needs next.
///
/// # Safety
/// Tiles are configured. `x` points to the packed tiles of m rows. `columns` begins at a multiple of PANEL, has at
/// most PANEL columns, and no other thread writes them.
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
    // SAFETY: the caller upholds this function's contract, and the scratch was reserved for these sizes.
    unsafe {
        let first = job.weight.bytes().as_ptr().add(columns.start * k * 2);
        for rows in (0..m).step_by(ROWS).map(|start| start..(start + ROWS).min(m)) {
            let mut depth = 0;
            // The body runs once even if k is 0, so that a product without inputs writes zeros.
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

/// Adds the products of a range of inputs to the sums. After the last range, writes the sums to the output.
///
/// # Safety
/// The contract of [`many`].
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
    // SAFETY: the caller upholds this function's contract, and the scratch was reserved for these sizes.
    unsafe {
        let panel = scratch.panel.as_mut_ptr().cast::<u8>();
        let sums = scratch.sums.as_mut_ptr();
        for pair in 0..pairs {
            let columns = pair_columns(pair);
            let first = job.weight.bytes().as_ptr().add(columns.start * k * 2);
            copy_pair(first, columns.len(), k, inputs.clone(), panel.add(pair * pair_stride));
        }
        // Each product also prefetches its share of the next panel, and of the next rows of x.
        let row_lines = DEPTH.min(k) * 2 / 64;
        let products = rows.len().div_ceil(32) * pairs * inputs.len().div_ceil(PART);
        let share = (columns.len() * row_lines).div_ceil(products.max(1));
        let mut line = 0;
        let mut start = inputs.start;
        // The body runs once even if there are no inputs, so that a product without inputs writes zeros.
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

/// Source for packed A tiles, which lie in memory pair after pair.
fn packed(first: *const u8) -> TileSource {
    TileSource { first, second: first.wrapping_add(TILE_BYTES), rows: 64, step: 2 * TILE_BYTES }
}

/// Copies `inputs` of up to 32 rows of W into pairs of tiles, padded with zeros.
///
/// # Safety
/// AVX-512 is available. `from` points to the first of `rows` rows with `k` elements each. `to` has room for the tiles.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn copy_pair(from: *const u8, rows: usize, k: usize, inputs: Range<usize>, to: *mut u8) {
    // SAFETY: masked elements are not read, and the tiles of `inputs` are inside `to`.
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

/// Writes four product tiles `[16 outputs][16 rows]` to the given rows and columns of the output.
///
/// # Safety
/// AVX-512 is available. `sums` points to four tiles. `rows` and `columns` (at most 32 each) are inside the output,
/// and no other thread writes them.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn write(out: &Output, sums: *const f32, rows: Range<usize>, columns: Range<usize>) {
    // SAFETY: the caller upholds this function's contract, and masked columns are neither read nor written.
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
