//! RMS norm.

use super::level::Level;
use super::matrix::{CpuBuffer, CpuVector};
use super::pool::Pool;
use super::simd::{Kernel, Simd, dispatch};
use crate::bail;
use crate::error::Result;

/// Kernel for one row: `out = x / sqrt(mean(x²) + eps) * weight`. `x` and `out` may be the same.
pub(super) struct Norm {
    pub x: *const f32,
    pub weight: *const f32,
    pub out: *mut f32,
    pub len: usize,
    pub eps: f32,
}

impl Kernel for Norm {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let len = self.len;
        let whole = len - len % S::LANES;
        // SAFETY: whoever creates a Norm guarantees that its three pointers are valid for len elements.
        unsafe {
            let mut squares = S::splat(0.0);
            let mut at = 0;
            while at < whole {
                let x = S::load(self.x.add(at));
                squares = x.fma(x, squares);
                at += S::LANES;
            }
            if whole < len {
                let x = S::load_part(self.x.add(whole), len - whole);
                squares = x.fma(x, squares);
            }
            let scale = S::splat(1.0 / (squares.sum() / len as f32 + self.eps).sqrt());
            at = 0;
            while at < whole {
                let x = S::load(self.x.add(at)).mul(scale);
                x.mul(S::load(self.weight.add(at))).store(self.out.add(at));
                at += S::LANES;
            }
            if whole < len {
                let x = S::load_part(self.x.add(whole), len - whole).mul(scale);
                x.mul(S::load_part(self.weight.add(whole), len - whole)).store_part(self.out.add(whole), len - whole);
            }
        }
    }
}

pub(super) fn rms_norm(
    pool: &mut Pool,
    level: Level,
    x: &CpuBuffer,
    rows: Option<&[u32]>,
    weight: &CpuVector,
    eps: f32,
    out: &mut CpuBuffer,
) -> Result<()> {
    let cols = x.cols();
    if weight.values.len() != cols {
        bail!(Internal, "norm of {} applied to {cols} columns", weight.values.len());
    }
    if let Some(&row) = rows.and_then(|rows| rows.iter().find(|&&row| row as usize >= x.rows())) {
        bail!(Internal, "norm of row {row} of {}", x.rows());
    }
    let count = rows.map_or(x.rows(), <[u32]>::len);
    out.resize(count, cols)?;
    let to = out.as_mut_slice().as_mut_ptr() as usize;
    pool.chunks(count, (1usize << 14).div_ceil(cols.max(1)), |_, range| {
        for index in range {
            let row = rows.map_or(index, |rows| rows[index] as usize);
            let (x, out) = (x.row(row).as_ptr(), to as *mut f32);
            // SAFETY: the level is available, only this call writes row `index` of `out`, and the lengths were checked.
            unsafe {
                let norm = Norm { x, weight: weight.values.as_ptr(), out: out.add(index * cols), len: cols, eps };
                dispatch(level, norm);
            }
        }
    });
    Ok(())
}
