//! Attention over bf16 KV on AMX tiles: queries and softmax weights are rounded to bf16, sums are f32. int8 KV is
//! rounded to bf16 as a tile is loaded.
//!
//! Both products have queries in columns: `Sᵀ[positions][queries] = K · Qᵀ` and `Oᵀ[dims][queries] = Vᵀ · P`.
//! Maxima, sums and rescaling are therefore plain vector operations over 16 queries, and no query affects another.
//! Columns come in pairs of tiles. A position that is masked for a query has weight zero.

use super::parts::{FOUR, Parts};
use super::tiles::{exp2, load_kv, pack_queries, prefetch_kv, write_out};
use super::{Call, FLOOR, Item, Scratch, TILE};
use crate::backend::cpu::tile::{self, TILE_BYTES, TileSource, Tiles};
use std::arch::x86_64::*;

/// # Safety
/// The level is Amx and the KV is bf16 or int8. The contract of [`super::run`] applies too.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn run(call: &Call<'_>, item: &Item<'_>, scratch: &mut Scratch) {
    let columns = item.rows.len() * call.group;
    let visible = item.visible(call.args.window);
    // SAFETY: the scratch has scratch_len floats, and the parts divide them among themselves.
    unsafe {
        let _tiles = Tiles::configure();
        let parts = Parts::new(scratch, call.dim, columns);
        pack_queries(call, item, &parts);
        for at in 0..columns.div_ceil(32) * parts.dims * FOUR {
            *parts.sums.add(at) = 0.0;
        }
        for column in 0..columns.next_multiple_of(32) {
            *parts.maxima.add(column) = FLOOR;
            *parts.totals.add(column) = 0.0;
            let row = item.rows.start + column.min(columns - 1) / call.group;
            *parts.positions.add(column) = item.position(row) as i32;
        }
        let mut tile = visible.start / TILE * TILE;
        while tile < visible.end {
            let seen = visible.start.max(tile) - tile..visible.end.min(tile + TILE) - tile;
            load_kv(call, item, &parts.kv, tile, seen);
            if tile + TILE < visible.end {
                prefetch_kv(call, item, tile + TILE..visible.end.min(tile + 2 * TILE));
            }
            for pair in 0..columns.div_ceil(32) {
                let second = pair * 32 + 16 < columns;
                let last = *parts.positions.add((pair * 32 + 31).min(columns - 1));
                let first = *parts.positions.add(pair * 32) as usize;
                let low = call.args.window.map_or(0, |window| (first + 1).saturating_sub(window as usize));
                if tile <= last as usize && tile + TILE > low {
                    attend(call, &parts, pair, second, tile);
                }
            }
            tile += TILE;
        }
        write_out(call, item, &parts);
    }
}

/// Computes attention of one pair of column tiles over one tile of positions.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn attend(call: &Call<'_>, parts: &Parts, pair: usize, second: bool, tile: usize) {
    // SAFETY: tiles are configured, and every pointer stays inside its part.
    unsafe {
        let dims = parts.dims;
        let queries = parts.queries.add(pair * dims * 2 * TILE_BYTES);
        let row = dims * 64;
        for half in 0..2 {
            let first = parts.kv.keys.add(half * 32 * row).cast_const();
            let keys = TileSource { first, second: first.add(16 * row), rows: row, step: 64 };
            tile::zero();
            if second {
                tile::multiply_2x2::<false>(keys, queries, dims, first);
            } else {
                tile::multiply_2x1::<false>(keys, queries, dims, first);
            }
            tile::store(parts.scores.add(half * FOUR));
        }
        for column in 0..1 + second as usize {
            soften(call, parts, pair, column, tile);
        }
        for dim in 0..dims {
            let sums = parts.sums.add((pair * dims + dim) * FOUR);
            let first = parts.kv.values.add(dim * 4 * TILE_BYTES).cast_const();
            let values = TileSource { first, second: first.add(TILE_BYTES), rows: 64, step: 2 * TILE_BYTES };
            tile::load(sums);
            if second {
                tile::multiply_2x2::<false>(values, parts.weights, 2, first);
            } else {
                tile::multiply_2x1::<false>(values, parts.weights, 2, first);
            }
            tile::store(sums);
        }
    }
}

/// Permutation that interleaves the words of two vectors: the weights of positions 2 i and 2 i + 1 become neighbours.
static INTERLEAVE: [u16; 32] = {
    let mut index = [0; 32];
    let mut i = 0;
    while i < 32 {
        index[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    index
};

/// Turns the scores of 16 queries into softmax weights, and rescales the sums so far to the new maxima.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn soften(call: &Call<'_>, parts: &Parts, pair: usize, column: usize, tile: usize) {
    // SAFETY: every pointer stays inside its part; the casts are between vectors of the same size.
    unsafe {
        let at = pair * 32 + column * 16;
        let positions = _mm512_loadu_si512(parts.positions.add(at).cast());
        let score = |t: usize| parts.scores.add(t / 32 * FOUR + (t / 16 % 2 * 2 + column) * 256 + t % 16 * 16);
        // Without a window, a query attends to every position up to its own.
        let window = call.args.window.map_or(i32::MAX, |window| window.min(i32::MAX as u32) as i32);
        let below = _mm512_sub_epi32(positions, _mm512_set1_epi32(window));
        let seen = |t: usize| {
            let position = _mm512_set1_epi32((tile + t) as i32);
            _mm512_cmple_epi32_mask(position, positions) & _mm512_cmpgt_epi32_mask(position, below)
        };
        let whole = seen(0) & seen(TILE - 1) == 0xffff;
        let hidden = _mm512_set1_ps(FLOOR);
        let scale = _mm512_set1_ps(call.args.scale * std::f32::consts::LOG2_E);
        let mut largest = [hidden; 4];
        if whole {
            for t in 0..TILE {
                let value = _mm512_mul_ps(_mm512_loadu_ps(score(t)), scale);
                _mm512_storeu_ps(score(t), value);
                largest[t % 4] = _mm512_max_ps(value, largest[t % 4]);
            }
        } else {
            for t in 0..TILE {
                let value = _mm512_mul_ps(_mm512_loadu_ps(score(t)), scale);
                let value = _mm512_mask_blend_ps(seen(t), hidden, value);
                _mm512_storeu_ps(score(t), value);
                largest[t % 4] = _mm512_max_ps(value, largest[t % 4]);
            }
        }
        let largest = _mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3]));
        let before = _mm512_loadu_ps(parts.maxima.add(at));
        let now = _mm512_max_ps(before, largest);
        let mut total = _mm512_loadu_ps(parts.totals.add(at));
        if _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(before, now) != 0 {
            let factor = exp2(_mm512_sub_ps(before, now));
            total = _mm512_mul_ps(total, factor);
            _mm512_storeu_ps(parts.maxima.add(at), now);
            for dim in 0..parts.dims * 2 {
                let sums = parts.sums.add((pair * parts.dims + dim / 2) * FOUR + (dim % 2 * 2 + column) * 256);
                for line in 0..16 {
                    let place = sums.add(line * 16);
                    _mm512_storeu_ps(place, _mm512_mul_ps(_mm512_loadu_ps(place), factor));
                }
            }
        }
        let interleave = _mm512_loadu_si512(INTERLEAVE.as_ptr().cast());
        let mut totals = [_mm512_setzero_ps(); 4];
        for t in (0..TILE).step_by(2) {
            let mut a = exp2(_mm512_sub_ps(_mm512_loadu_ps(score(t)), now));
            let mut b = exp2(_mm512_sub_ps(_mm512_loadu_ps(score(t + 1)), now));
            if !whole {
                a = _mm512_maskz_mov_ps(seen(t), a);
                b = _mm512_maskz_mov_ps(seen(t + 1), b);
            }
            totals[t % 4] = _mm512_add_ps(totals[t % 4], a);
            totals[t % 4 + 1] = _mm512_add_ps(totals[t % 4 + 1], b);
            let words = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a));
            let place = parts.weights.add((t / 32 * 2 + column) * TILE_BYTES + t % 32 / 2 * 64);
            _mm512_storeu_si512(place.cast(), _mm512_permutexvar_epi16(interleave, words));
        }
        let added = _mm512_add_ps(_mm512_add_ps(totals[0], totals[1]), _mm512_add_ps(totals[2], totals[3]));
        _mm512_storeu_ps(parts.totals.add(at), _mm512_add_ps(total, added));
    }
}
