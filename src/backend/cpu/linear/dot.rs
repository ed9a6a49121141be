//! Products as dot products along the inputs, in f32 vectors. Every level uses this for f32 and f16 weights; levels
//! without bf16 instructions use it for bf16 too. Order of additions for an output element: lane i of one accumulator
//! adds the products at i, i + LANES, ... (the end padded with zeros), then the lanes are summed.
// Register tiles are indexed in both directions; iterators would hide their shape.
#![allow(clippy::needless_range_loop)]

use super::Output;
use crate::backend::cpu::level::Level;
use crate::backend::cpu::matrix::{CpuBuffer, CpuMatrix};
use crate::backend::cpu::memory::Aligned;
use crate::backend::cpu::pool::Pool;
use crate::backend::cpu::simd::{Bf16, Element, F16, Kernel, Simd, bf16_bits, dispatch};
use crate::error::Result;
use crate::tensor::Dtype;
use std::ops::Range;

/// Rounds the input to bf16 and widens it again to f32.
pub(super) fn round_input(pool: &mut Pool, x: &CpuBuffer, out: &mut Aligned<f32>) -> Result<()> {
    out.resize(x.as_slice().len())?;
    let to = out.as_mut_ptr() as usize;
    pool.chunks(x.as_slice().len(), 1 << 15, |_, range| {
        // SAFETY: `out` is as long as `x`, and chunks are disjoint.
        let to = unsafe { std::slice::from_raw_parts_mut((to as *mut f32).add(range.start), range.len()) };
        for (to, &from) in to.iter_mut().zip(&x.as_slice()[range]) {
            *to = f32::from_bits((bf16_bits(from) as u32) << 16);
        }
    });
    Ok(())
}

/// Computes `out[0..m, columns] = x · W[columns]ᵀ`.
///
/// # Safety
/// The level is available, x is `[m, W.cols]`, the columns are inside W and out, and no other thread touches them.
pub(super) unsafe fn product(
    level: Level,
    x: *const f32,
    m: usize,
    weight: &CpuMatrix,
    columns: Range<usize>,
    out: Output,
) {
    let k = weight.cols();
    let w = weight.bytes().as_ptr();
    // SAFETY: matrices are aligned to their elements, and the caller upholds the rest of this function's contract.
    unsafe {
        match weight.dtype() {
            Dtype::F32 => dispatch(level, Product { x, m, k, w: w.cast::<f32>(), columns, out }),
            Dtype::F16 => dispatch(level, Product { x, m, k, w: w.cast::<F16>(), columns, out }),
            Dtype::Bf16 => dispatch(level, Product { x, m, k, w: w.cast::<Bf16>(), columns, out }),
            Dtype::I8 => unreachable!("no matrix is int8"),
        }
    }
}

struct Product<W> {
    x: *const f32,
    m: usize,
    k: usize,
    w: *const W,
    columns: Range<usize>,
    out: Output,
}

impl<W: Element> Kernel for Product<W> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the tiles lie inside, by the contract of `product`.
        unsafe {
            // A few rows stay in L1 for all columns of the item. The weights of those columns stay in L2 for all rows.
            let mut row = 0;
            while row < self.m {
                if self.m - row >= 4 {
                    self.columns::<S, 4>(row);
                    row += 4;
                } else {
                    self.columns::<S, 1>(row);
                    row += 1;
                }
            }
        }
    }
}

impl<W: Element> Product<W> {
    #[inline(always)]
    unsafe fn columns<S: Simd, const M: usize>(&self, row: usize) {
        // SAFETY: rows and columns are inside, by the contract of `product`.
        unsafe {
            let mut col = self.columns.start;
            while col < self.columns.end {
                let left = self.columns.end - col;
                if left >= 4 && S::LANES == 16 {
                    self.tile::<S, M, 4>(row, col);
                    col += 4;
                } else if left >= 2 {
                    self.tile::<S, M, 2>(row, col);
                    col += 2;
                } else {
                    self.tile::<S, M, 1>(row, col);
                    col += 1;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const N: usize>(&self, row: usize, col: usize) {
        // SAFETY: k elements from each row of x and W are valid, by the contract of `product`.
        unsafe {
            let k = self.k;
            let (x, w) = (self.x.add(row * k), self.w.add(col * k));
            let mut sums = [[S::splat(0.0); N]; M];
            let whole = k - k % S::LANES;
            let mut at = 0;
            while at < whole {
                let mut wide = [S::splat(0.0); N];
                for j in 0..N {
                    wide[j] = W::load::<S>(w.add(j * k + at));
                }
                for i in 0..M {
                    let value = S::load(x.add(i * k + at));
                    for j in 0..N {
                        sums[i][j] = value.fma(wide[j], sums[i][j]);
                    }
                }
                at += S::LANES;
            }
            if whole < k {
                let tail = k - whole;
                for i in 0..M {
                    let value = S::load_part(x.add(i * k + whole), tail);
                    for j in 0..N {
                        sums[i][j] = value.fma(W::load_part::<S>(w.add(j * k + whole), tail), sums[i][j]);
                    }
                }
            }
            // A plain copy is unrolled, which keeps the sums above in registers. The reduction is a loop.
            let mut lanes = [[S::splat(0.0); N]; M];
            for i in 0..M {
                for j in 0..N {
                    sums[i][j].store((&raw mut lanes[i][j]).cast());
                }
            }
            for (i, lanes) in lanes.iter().enumerate() {
                for (j, lanes) in std::hint::black_box(lanes).iter().enumerate() {
                    self.out.put(row + i, col + j, lanes.sum());
                }
            }
        }
    }
}
