//! Converts inputs to bf16: rows for dot products, tiles for AMX. Rounds to nearest even and pads with zeros.

use crate::backend::cpu::matrix::CpuBuffer;
use crate::backend::cpu::memory::Aligned;
use crate::backend::cpu::pool::Pool;
use crate::backend::cpu::simd::transpose16;
use crate::backend::cpu::tile::TILE_BYTES;
use crate::error::Result;
use std::arch::x86_64::*;

/// Packs the input as rows of bf16, with `k` padded to a multiple of 32.
///
/// The level must be at least Avx512Bf16.
pub(super) fn rows(pool: &mut Pool, x: &CpuBuffer, out: &mut Aligned<u16>) -> Result<()> {
    let (m, k) = (x.rows(), x.cols());
    let padded = k.next_multiple_of(32);
    out.resize(m * padded)?;
    let to = out.as_mut_ptr() as usize;
    pool.chunks(m, (1usize << 15).div_ceil(padded.max(1)), |_, range| {
        for row in range {
            // SAFETY: the level is available, and only this call writes row `row` of `out`.
            unsafe { pack_row(x.row(row), (to as *mut u16).add(row * padded)) };
        }
    });
    Ok(())
}

/// # Safety
/// AVX-512 BF16 is available, and `to` is valid for the padded row.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack_row(from: &[f32], to: *mut u16) {
    for at in (0..from.len()).step_by(32) {
        // SAFETY: reads what is left of the row and writes 32 elements of the padded row.
        unsafe { _mm512_storeu_si512(to.add(at).cast(), pairs(from.as_ptr().add(at), from.len() - at)) };
    }
}

/// 32 floats as bf16; if `len` is less than 32, `len` floats followed by zeros.
///
/// # Safety
/// AVX-512 BF16 is available, and `from` is valid for min(len, 32) elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pairs(from: *const f32, len: usize) -> __m512i {
    // SAFETY: masked lanes are not read, and the cast is between vectors of the same size.
    unsafe {
        let (low, high) = if len >= 32 {
            (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)))
        } else {
            let mask = (1u32 << len) - 1;
            let high = _mm512_maskz_loadu_ps((mask >> 16) as u16, from.wrapping_add(16));
            (_mm512_maskz_loadu_ps(mask as u16, from), high)
        };
        std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
    }
}

/// Distance in bytes between the packed tiles of one group of 32 rows and the next: two tiles per 32 inputs.
pub(super) fn pair_bytes(k: usize) -> usize {
    k.div_ceil(32) * 2 * TILE_BYTES
}

/// Packs the input as B tiles: `[rows / 32][k / 32][2][16 k pairs][16 rows][2]`. The second tile of the last pair is
/// not written if there are no rows for it.
///
/// The level must be Amx.
pub(super) fn tiles(pool: &mut Pool, x: &CpuBuffer, out: &mut Aligned<u16>) -> Result<()> {
    let (m, k) = (x.rows(), x.cols());
    out.resize(m.div_ceil(32) * pair_bytes(k) / 2)?;
    let to = out.as_mut_ptr() as usize;
    let steps = k.div_ceil(32);
    // Each chunk is 128 tiles, about five microseconds of work.
    pool.chunks(m.div_ceil(16) * steps, 128, |_, range| {
        for tile in range {
            let (block, step) = (tile / steps, tile % steps);
            let place = (block / 2 * steps + step) * 2 + block % 2;
            // SAFETY: the level is available; the tile is inside `out`, and only this call writes it.
            unsafe { pack_tile(x, block * 16, step * 32, (to as *mut u8).add(place * TILE_BYTES)) };
        }
    });
    Ok(())
}

/// # Safety
/// AVX-512 BF16 is available, and `to` is valid for a tile.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack_tile(x: &CpuBuffer, row: usize, at: usize, to: *mut u8) {
    let (m, k) = (x.rows(), x.cols());
    let mut lines = [_mm512_setzero_ps(); 16];
    let rows = (m - row).min(16);
    for (i, line) in lines.iter_mut().enumerate().take(rows) {
        // SAFETY: row + i < m and at < k, so the pointer is inside `x`.
        unsafe { *line = _mm512_castsi512_ps(pairs(x.as_slice().as_ptr().add((row + i) * k + at), k - at)) };
    }
    // SAFETY: `to` is valid for 16 lines of 64 bytes.
    unsafe {
        for (i, line) in transpose16(lines).into_iter().enumerate() {
            _mm512_storeu_ps(to.add(i * 64).cast(), line);
        }
    }
}
