//! Attention in f32 vectors, for every level and dtype. Scores have positions in lanes, so K is transposed once per
//! tile. Outputs have head dimensions in lanes. The only sum across lanes is that of a row's weights.
// Register tiles are indexed in both directions; iterators would hide their shape.
#![allow(clippy::needless_range_loop)]

use super::stored::{Run, Stored};
use super::{Call, FLOOR, Item, Scratch, TILE};
use crate::backend::cpu::level::Level;
use crate::backend::cpu::simd::{Element, Kernel, Simd, dispatch};
use std::marker::PhantomData;

/// Number of floats of scratch needed for `rows` query rows.
pub(super) fn scratch_len(dim: usize, rows: usize) -> usize {
    let padded = dim.next_multiple_of(16);
    2 * TILE * padded + rows * (TILE + padded + 2) + padded + 64
}

struct Attend<'a, T> {
    call: &'a Call<'a>,
    item: &'a Item<'a>,
    scratch: &'a mut Scratch,
    stored: PhantomData<T>,
}

/// # Safety
/// The contract of [`super::run`] applies, and `T` is the storage format of the KV geometry.
pub(super) unsafe fn run<T: Stored>(level: Level, call: &Call<'_>, item: &Item<'_>, scratch: &mut Scratch) {
    // SAFETY: the caller upholds the same contract.
    unsafe { dispatch(level, Attend::<T> { call, item, scratch, stored: PhantomData }) }
}

/// Pointers into a thread's scratch.
struct Parts {
    /// `[dim][TILE]`
    keys: *mut f32,
    /// `[TILE][padded]`
    values: *mut f32,
    /// `[rows][TILE]`: scores, then weights.
    scores: *mut f32,
    /// `[rows][padded]`
    sums: *mut f32,
    maxima: *mut f32,
    totals: *mut f32,
    /// Space for one row.
    row: *mut f32,
    padded: usize,
    rows: usize,
}

impl<T: Stored> Kernel for Attend<'_, T> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Attend { call, item, scratch, .. } = self;
        let padded = call.dim.next_multiple_of(16);
        let rows = item.rows.len() * call.group;
        let visible = item.visible(call.args.window);
        // SAFETY: the scratch has scratch_len floats, and the parts divide them among themselves.
        unsafe {
            let keys = scratch.floats.as_mut_ptr();
            let values = keys.add(TILE * padded);
            let scores = values.add(TILE * padded);
            let sums = scores.add(rows * TILE);
            let maxima = sums.add(rows * padded);
            let totals = maxima.add(rows);
            let parts = Parts { keys, values, scores, sums, maxima, totals, row: totals.add(rows), padded, rows };
            for at in 0..rows * padded {
                *sums.add(at) = 0.0;
            }
            for row in 0..rows {
                *maxima.add(row) = FLOOR;
                *totals.add(row) = 0.0;
            }
            let mut tile = visible.start / TILE * TILE;
            while tile < visible.end {
                let low = visible.start.saturating_sub(tile);
                let high = (visible.end - tile).min(TILE);
                load::<T, S>(call, item, &parts, tile, low, high);
                score_rows::<S>(call, item, &parts);
                for row in 0..rows {
                    soften::<S>(call, item, &parts, row, tile);
                }
                accumulate_rows::<S>(&parts, low, high);
                tile += TILE;
            }
            for row in 0..rows {
                let query = item.rows.start + row / call.group;
                let head = item.kv_head * call.group + row % call.group;
                let out = call.out.add((query * call.args.heads + head) * call.dim);
                let scale = 1.0 / *totals.add(row);
                for d in 0..call.dim {
                    // Adding zero turns -0.0 into 0.0: the sign must not depend on the masked positions in the tile.
                    *out.add(d) = *sums.add(row * padded + d) * scale + 0.0;
                }
            }
        }
    }
}

/// Widens positions `low..high` of a tile, and transposes K. The other positions become zero.
#[inline(always)]
unsafe fn load<T: Stored, S: Simd>(
    call: &Call<'_>,
    item: &Item<'_>,
    parts: &Parts,
    tile: usize,
    low: usize,
    high: usize,
) {
    let dim = call.dim;
    // SAFETY: positions low..high have slots in the span's blocks; `check` verified that.
    unsafe {
        if high - low < TILE {
            for at in 0..TILE * parts.padded {
                *parts.keys.add(at) = 0.0;
                *parts.values.add(at) = 0.0;
            }
        }
        let mut at = low;
        while at < high {
            let (keys, run) = Run::new(call, item, false, tile + at);
            let (values, _) = Run::new(call, item, true, tile + at);
            let run = run.min(high - at);
            for token in 0..run {
                let key = T::row(&keys, token, parts.row);
                for d in 0..dim {
                    *parts.keys.add(d * TILE + at + token) = (*key.add(d)).to_f32();
                }
                let (from, to) = (T::row(&values, token, parts.row), parts.values.add((at + token) * parts.padded));
                let whole = dim - dim % S::LANES;
                let mut d = 0;
                while d < whole {
                    T::Element::load::<S>(from.add(d)).store(to.add(d));
                    d += S::LANES;
                }
                while d < parts.padded {
                    *to.add(d) = if d < dim { (*from.add(d)).to_f32() } else { 0.0 };
                    d += 1;
                }
            }
            at += run;
        }
    }
}

#[inline(always)]
unsafe fn score_rows<S: Simd>(call: &Call<'_>, item: &Item<'_>, parts: &Parts) {
    // SAFETY: the rows are inside the item.
    unsafe {
        let mut row = 0;
        while row + 4 <= parts.rows {
            score_block::<S, 4>(call, item, parts, row);
            row += 4;
        }
        while row < parts.rows {
            score_block::<S, 1>(call, item, parts, row);
            row += 1;
        }
    }
}

#[inline(always)]
unsafe fn score_block<S: Simd, const R: usize>(call: &Call<'_>, item: &Item<'_>, parts: &Parts, row: usize) {
    // SAFETY: the rows are inside the item.
    unsafe {
        if S::LANES == 16 {
            score::<S, R, 4>(call, item, parts, row);
        } else {
            score::<S, R, 2>(call, item, parts, row);
        }
    }
}

/// Computes the scores of R rows. Each score is one sequence of additions over the head dimension.
#[inline(always)]
unsafe fn score<S: Simd, const R: usize, const V: usize>(call: &Call<'_>, item: &Item<'_>, parts: &Parts, row: usize) {
    // SAFETY: q has the item's rows and heads, and the parts of the scratch have the shapes documented on `Parts`.
    unsafe {
        let mut q = [std::ptr::null::<f32>(); R];
        for (r, q) in q.iter_mut().enumerate() {
            let query = item.rows.start + (row + r) / call.group;
            let head = item.kv_head * call.group + (row + r) % call.group;
            *q = call.q.as_slice().as_ptr().add((query * call.args.heads + head) * call.dim);
        }
        let scale = S::splat(call.args.scale);
        let mut lane = 0;
        while lane < TILE {
            let mut sums = [[S::splat(0.0); V]; R];
            for d in 0..call.dim {
                let mut keys = [S::splat(0.0); V];
                for v in 0..V {
                    keys[v] = S::load(parts.keys.add(d * TILE + lane + v * S::LANES));
                }
                for r in 0..R {
                    let value = S::splat(*q[r].add(d));
                    for v in 0..V {
                        sums[r][v] = value.fma(keys[v], sums[r][v]);
                    }
                }
            }
            for r in 0..R {
                for v in 0..V {
                    let to = parts.scores.add((row + r) * TILE + lane + v * S::LANES);
                    sums[r][v].mul(scale).store(to);
                }
            }
            lane += V * S::LANES;
        }
    }
}

static INDEX: [f32; TILE] = {
    let mut index = [0.0; TILE];
    let mut i = 0;
    while i < TILE {
        index[i] = i as f32;
        i += 1;
    }
    index
};

/// Turns a row's scores into softmax weights, and rescales the row's sums so far to its new maximum.
#[inline(always)]
unsafe fn soften<S: Simd>(call: &Call<'_>, item: &Item<'_>, parts: &Parts, row: usize, tile: usize) {
    let lanes = call.lanes(item.position(item.rows.start + row / call.group), tile);
    // SAFETY: the parts of the scratch have the shapes documented on `Parts`.
    unsafe {
        let scores = parts.scores.add(row * TILE);
        let (low, high) = (S::splat(lanes.start as f32), S::splat(lanes.end as f32));
        let hidden = S::splat(f32::NEG_INFINITY);
        let mut largest = hidden;
        let mut at = 0;
        while at < TILE {
            let index = S::load(INDEX.as_ptr().add(at));
            let seen = S::select_lt(index, high, S::load(scores.add(at)), hidden);
            let seen = S::select_lt(index, low, hidden, seen);
            seen.store(scores.add(at));
            largest = largest.max(seen);
            at += S::LANES;
        }
        let (before, now) = (*parts.maxima.add(row), largest.largest());
        let now = if now > before { now } else { before };
        let mut total = S::splat(0.0);
        let shift = S::splat(now);
        at = 0;
        while at < TILE {
            let weight = S::load(scores.add(at)).sub(shift).exp();
            weight.store(scores.add(at));
            total = total.add(weight);
            at += S::LANES;
        }
        let total = total.sum();
        if now > before {
            let factor = S::splat(before - now).exp();
            let mut d = 0;
            while d < parts.padded {
                let sum = parts.sums.add(row * parts.padded + d);
                S::load(sum).mul(factor).store(sum);
                d += S::LANES;
            }
            let mut first = [0.0f32; 16];
            factor.store(first.as_mut_ptr());
            *parts.totals.add(row) *= first[0];
            *parts.maxima.add(row) = now;
        }
        *parts.totals.add(row) += total;
    }
}

#[inline(always)]
unsafe fn accumulate_rows<S: Simd>(parts: &Parts, low: usize, high: usize) {
    // SAFETY: the rows and columns are inside the scratch.
    unsafe {
        let mut row = 0;
        while row < parts.rows {
            let many = row + 4 <= parts.rows;
            let mut d = 0;
            while d < parts.padded {
                let wide = d + 4 * S::LANES <= parts.padded && S::LANES == 16;
                match (many, wide) {
                    (true, true) => accumulate::<S, 4, 4>(parts, row, d, low, high),
                    (true, false) => accumulate::<S, 4, 1>(parts, row, d, low, high),
                    (false, true) => accumulate::<S, 1, 4>(parts, row, d, low, high),
                    (false, false) => accumulate::<S, 1, 1>(parts, row, d, low, high),
                }
                d += if wide { 4 * S::LANES } else { S::LANES };
            }
            row += if many { 4 } else { 1 };
        }
    }
}

/// Adds a tile's weighted values to the sums. Each sum is one sequence of additions over ascending positions.
#[inline(always)]
unsafe fn accumulate<S: Simd, const R: usize, const V: usize>(
    parts: &Parts,
    row: usize,
    d: usize,
    low: usize,
    high: usize,
) {
    // SAFETY: the rows and columns are inside the scratch.
    unsafe {
        let sum = |r: usize, v: usize| parts.sums.add((row + r) * parts.padded + d + v * S::LANES);
        let mut sums = [[S::splat(0.0); V]; R];
        for r in 0..R {
            for v in 0..V {
                sums[r][v] = S::load(sum(r, v));
            }
        }
        for at in low..high {
            let mut values = [S::splat(0.0); V];
            for v in 0..V {
                values[v] = S::load(parts.values.add(at * parts.padded + d + v * S::LANES));
            }
            for r in 0..R {
                let weight = S::splat(*parts.scores.add((row + r) * TILE + at));
                for v in 0..V {
                    sums[r][v] = weight.fma(values[v], sums[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                sums[r][v].store(sum(r, v));
            }
        }
    }
}
