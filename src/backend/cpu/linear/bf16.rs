//! bf16 products with AVX-512 bf16 dot products along the inputs. Order of additions for an output element: lane i
//! of one accumulator adds the products of inputs 2 i, 2 i + 1, 2 i + 32, ... (the end padded with zeros), then the
//! lanes are summed.
// Register tiles are indexed in both directions; iterators would hide their shape.
#![allow(clippy::needless_range_loop)]

use super::Job;
use std::arch::x86_64::*;
use std::ops::Range;

/// Number of inputs per vector.
const STEP: usize = 32;

/// Computes `out[0..m, columns] = x · W[columns]ᵀ`, where x holds packed rows.
///
/// # Safety
/// AVX-512 BF16 is available. `x` points to m rows, with k padded to a multiple of 32. The columns are inside the
/// output, and no other thread writes them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn product(job: &Job<'_>, columns: Range<usize>, x: *const u16, m: usize) {
    // SAFETY: every tile lies inside the rows and columns of the call.
    unsafe {
        // A few rows stay in L1 for all columns of the item. The weights of those columns stay in L2 for all rows.
        let mut row = 0;
        while row < m {
            let high = m - row >= 6;
            let mut col = columns.start;
            while col < columns.end {
                let wide = columns.end - col >= 4;
                match (high, wide) {
                    (true, true) => tile::<6, 4>(job, x, row, col),
                    (true, false) => tile::<6, 1>(job, x, row, col),
                    (false, true) => tile::<1, 4>(job, x, row, col),
                    (false, false) => tile::<1, 1>(job, x, row, col),
                }
                col += if wide { 4 } else { 1 };
            }
            row += if high { 6 } else { 1 };
        }
    }
}

/// # Safety
/// The contract of [`product`]; the tile's rows and columns are inside those of the call.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn tile<const M: usize, const N: usize>(job: &Job<'_>, x: *const u16, row: usize, col: usize) {
    let k = job.weight.cols();
    let padded = k.next_multiple_of(STEP);
    // SAFETY: the caller upholds this function's contract. Masked inputs are not read. Casts keep the vector size.
    unsafe {
        let x = x.add(row * padded);
        let w = job.weight.bytes().as_ptr().cast::<u16>().add(col * k);
        // The weights of the next outputs are one contiguous region. Prefetch it in order, one line per line used.
        let ahead = w.wrapping_add(N * k);
        let mut sums = [[_mm512_setzero_ps(); N]; M];
        let mut at = 0;
        while at + STEP <= k {
            let mut weights = [_mm512_setzero_si512(); N];
            for j in 0..N {
                weights[j] = _mm512_loadu_si512(w.add(j * k + at).cast());
                if row == 0 {
                    _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(at * N + j * STEP).cast());
                }
            }
            for i in 0..M {
                let input = _mm512_loadu_si512(x.add(i * padded + at).cast());
                for j in 0..N {
                    sums[i][j] = _mm512_dpbf16_ps(sums[i][j], bf16(input), bf16(weights[j]));
                }
            }
            at += STEP;
        }
        if at < k {
            let mask = ((1u64 << (k - at)) - 1) as u32;
            for i in 0..M {
                let input = _mm512_loadu_si512(x.add(i * padded + at).cast());
                for j in 0..N {
                    let weights = _mm512_maskz_loadu_epi16(mask, w.add(j * k + at).cast());
                    sums[i][j] = _mm512_dpbf16_ps(sums[i][j], bf16(input), bf16(weights));
                }
            }
        }
        // A plain copy is unrolled, which keeps the sums above in registers. The reduction is a loop.
        let mut lanes = [[_mm512_setzero_ps(); N]; M];
        for i in 0..M {
            for j in 0..N {
                _mm512_storeu_ps((&raw mut lanes[i][j]).cast(), sums[i][j]);
            }
        }
        for (i, lanes) in lanes.iter().enumerate() {
            for (j, lanes) in std::hint::black_box(lanes).iter().enumerate() {
                job.out.put(row + i, col + j, _mm512_reduce_add_ps(*lanes));
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both vectors have the same size, and every bit pattern is a valid value.
    unsafe { std::mem::transmute(bits) }
}
