//! Operands of AMX attention: queries, keys and values as bf16 tiles, and the outputs.

use super::parts::{Kv, Parts};
use super::stored::Run;
use super::{Call, Item, TILE};
use crate::backend::cpu::simd::{bf16_bits, transpose16};
use crate::backend::cpu::tile::TILE_BYTES;
use crate::tensor::Dtype;
use std::arch::x86_64::*;
use std::ops::Range;

/// 2 to the power of each lane, at least 2^-126. Lanes must be at most 0.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn exp2(x: __m512) -> __m512 {
    // max_ps returns its second operand if either is NaN, so this order keeps a NaN in `x`.
    let x = _mm512_max_ps(_mm512_set1_ps(-126.0), x);
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
    let r = _mm512_sub_ps(x, n);
    let p = _mm512_set1_ps(1.339_887_4e-3);
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.618_437e-3));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.550_332_5e-2));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.402_264_8e-1));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931_472e-1));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0));
    _mm512_scalef_ps(p, n)
}

/// Mask of the elements that exist from index `at` on: at most `most` (16 or 32) of `len`.
fn mask(len: usize, at: usize, most: usize) -> u32 {
    ((1u64 << len.saturating_sub(at).min(most)) - 1) as u32
}

/// # Safety
/// AVX-512 BF16 is available, and q has the item's rows and heads.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pack_queries(call: &Call<'_>, item: &Item<'_>, parts: &Parts) {
    // SAFETY: masked elements are not read. Columns beyond the last are set to zero.
    unsafe {
        for block in 0..parts.columns.div_ceil(16) {
            for dim in 0..parts.dims {
                let (low, high) = (mask(call.dim, dim * 32, 16) as u16, mask(call.dim, dim * 32 + 16, 16) as u16);
                let mut lines = [_mm512_setzero_ps(); 16];
                for (i, line) in lines.iter_mut().enumerate().take(parts.columns - block * 16) {
                    let column = block * 16 + i;
                    let row = item.rows.start + column / call.group;
                    let head = item.kv_head * call.group + column % call.group;
                    let q = call.q.as_slice().as_ptr().add((row * call.args.heads + head) * call.dim);
                    let low = _mm512_maskz_loadu_ps(low, q.wrapping_add(dim * 32));
                    let high = _mm512_maskz_loadu_ps(high, q.wrapping_add(dim * 32 + 16));
                    *line = std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high, low));
                }
                let tile = parts.queries.add(((block / 2 * parts.dims + dim) * 2 + block % 2) * TILE_BYTES);
                for (i, line) in transpose16(lines).into_iter().enumerate() {
                    _mm512_storeu_ps(tile.add(i * 64).cast(), line);
                }
            }
        }
    }
}

/// Widens an int8 row to bf16 in `to`, and returns `to`.
///
/// # Safety
/// AVX-512 BW and VL are available, the KV is int8, `token` is in the run, and `to` has room for a row.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn widen(run: &Run<'_, '_>, token: usize, to: *mut u16) -> *const i16 {
    // SAFETY: the caller upholds this function's contract.
    unsafe {
        let (q, scale) = run.int8(token);
        for (at, &q) in q.iter().enumerate() {
            *to.add(at) = bf16_bits(f32::from(q as i8) * scale);
        }
    }
    to.cast()
}

/// Lays out positions `seen` of the tile at `tile`. The other positions become zero, whatever their slots hold.
///
/// # Safety
/// AVX-512 BW and VL are available, the positions have slots in the span's blocks, and `kv` has room for a tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn load_kv(call: &Call<'_>, item: &Item<'_>, kv: &Kv, tile: usize, seen: Range<usize>) {
    let mut keys = [std::ptr::null::<i16>(); TILE];
    let mut values = [std::ptr::null::<i16>(); TILE];
    let int8 = call.geometry.dtype == Dtype::I8;
    let mut at = seen.start;
    while at < seen.end {
        let (key, run) = Run::new(call, item, false, tile + at);
        let (value, _) = Run::new(call, item, true, tile + at);
        for token in 0..run.min(seen.end - at) {
            if int8 {
                let rows = kv.rows.wrapping_add((at + token) * kv.dims * 32);
                // SAFETY: the token is in the run, and `rows` has room for its two rows.
                unsafe {
                    keys[at + token] = widen(&key, token, rows);
                    values[at + token] = widen(&value, token, rows.add(TILE * kv.dims * 32));
                }
            } else {
                keys[at + token] = key.tokens.cast::<i16>().wrapping_add(token * call.dim);
                values[at + token] = value.tokens.cast::<i16>().wrapping_add(token * call.dim);
            }
        }
        at += run;
    }
    // SAFETY: masked elements are not read, and a null pointer always gets an empty mask.
    unsafe {
        for (token, &key) in keys.iter().enumerate() {
            for dim in 0..kv.dims {
                let mask = if key.is_null() { 0 } else { mask(call.dim, dim * 32, 32) };
                let line = _mm512_maskz_loadu_epi16(mask, key.wrapping_add(dim * 32));
                _mm512_storeu_si512(kv.keys.add((token * kv.dims + dim) * 64).cast(), line);
            }
        }
        for part in 0..kv.dims * 2 {
            let mask = mask(call.dim, part * 16, 16) as u16;
            for half in 0..2 {
                let mut lines = [_mm512_setzero_ps(); 16];
                for (i, line) in lines.iter_mut().enumerate() {
                    let load = |value: *const i16| {
                        let mask = if value.is_null() { 0 } else { mask };
                        _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, value.wrapping_add(part * 16)))
                    };
                    let even = load(values[half * 32 + 2 * i]);
                    let odd = _mm512_slli_epi32::<16>(load(values[half * 32 + 2 * i + 1]));
                    *line = _mm512_castsi512_ps(_mm512_or_si512(even, odd));
                }
                let tile = kv.values.add((part / 2 * 4 + half * 2 + part % 2) * TILE_BYTES);
                for (i, line) in transpose16(lines).into_iter().enumerate() {
                    _mm512_storeu_ps(tile.add(i * 64).cast(), line);
                }
            }
        }
    }
}

/// Prefetches K and V of the given positions into L2.
///
/// # Safety
/// The positions have slots in the span's blocks.
pub(super) unsafe fn prefetch_kv(call: &Call<'_>, item: &Item<'_>, positions: Range<usize>) {
    let mut at = positions.start;
    while at < positions.end {
        let (key, run) = call.tokens(item, false, at);
        let (value, _) = call.tokens(item, true, at);
        let run = run.min(positions.end - at);
        for offset in (0..run * call.geometry.row_bytes()).step_by(64) {
            // SAFETY: a prefetch never faults.
            unsafe {
                _mm_prefetch::<_MM_HINT_T1>(key.wrapping_add(offset).cast());
                _mm_prefetch::<_MM_HINT_T1>(value.wrapping_add(offset).cast());
            }
        }
        at += run;
    }
}

/// Divides the sums by the totals, transposes them so that queries are rows again, and writes them to the output.
///
/// # Safety
/// AVX-512 is available, and no other thread writes the item's rows and heads of the output.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn write_out(call: &Call<'_>, item: &Item<'_>, parts: &Parts) {
    // SAFETY: masked elements are not written, and every pointer stays inside its part.
    unsafe {
        for block in 0..parts.columns.div_ceil(16) {
            let totals = _mm512_loadu_ps(parts.totals.add(block * 16));
            let scale = _mm512_div_ps(_mm512_set1_ps(1.0), totals);
            for part in 0..call.dim.div_ceil(16) {
                let four = parts.sums.add((block / 2 * parts.dims + part / 2) * TILE_BYTES);
                let tile = four.add((part % 2 * 2 + block % 2) * TILE_BYTES / 4);
                let mut lines = [_mm512_setzero_ps(); 16];
                for (i, line) in lines.iter_mut().enumerate() {
                    // Adding zero turns -0.0 into 0.0: the sign must not depend on the masked positions in the tile.
                    let sum = _mm512_mul_ps(_mm512_loadu_ps(tile.add(i * 16)), scale);
                    *line = _mm512_add_ps(sum, _mm512_setzero_ps());
                }
                let mask = mask(call.dim, part * 16, 16) as u16;
                let lines = transpose16(lines);
                for (i, &line) in lines.iter().enumerate().take(parts.columns - block * 16) {
                    let column = block * 16 + i;
                    let row = item.rows.start + column / call.group;
                    let head = item.kv_head * call.group + column % call.group;
                    let out = call.out.add((row * call.args.heads + head) * call.dim + part * 16);
                    _mm512_mask_storeu_ps(out, mask, line);
                }
            }
        }
    }
}
