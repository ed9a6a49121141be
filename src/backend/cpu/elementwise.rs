//! Embedding lookup, residual sums and the gated activation.

use super::level::Level;
use super::matrix::{CpuBuffer, CpuMatrix};
use super::pool::Pool;
use super::simd::{Bf16, Element, F16, Kernel, Simd, dispatch};
use crate::bail;
use crate::error::Result;
use crate::tensor::Dtype;

/// Kernel that widens `len` elements to f32.
struct Widen<E> {
    from: *const E,
    to: *mut f32,
    len: usize,
}

impl<E: Element> Kernel for Widen<E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.len - self.len % S::LANES;
        // SAFETY: both pointers are valid for len elements.
        unsafe {
            let mut at = 0;
            while at < whole {
                E::load::<S>(self.from.add(at)).store(self.to.add(at));
                at += S::LANES;
            }
            for at in whole..self.len {
                *self.to.add(at) = (*self.from.add(at)).to_f32();
            }
        }
    }
}

pub(super) fn embed(
    pool: &mut Pool,
    level: Level,
    table: &CpuMatrix,
    tokens: &[u32],
    out: &mut CpuBuffer,
) -> Result<()> {
    let cols = table.cols();
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= table.rows()) {
        bail!(InvalidArgument, "token {token} is outside the vocabulary of {}", table.rows());
    }
    out.resize(tokens.len(), cols)?;
    let to = out.as_mut_slice().as_mut_ptr() as usize;
    let from = table.bytes();
    pool.chunks(tokens.len(), 16, |_, range| {
        for row in range {
            let from = from[tokens[row] as usize * cols * table.dtype().size()..].as_ptr();
            // SAFETY: the level is available; the token is in the table, which is aligned to its elements; only this
            // call writes this row of `out`.
            unsafe {
                let to = (to as *mut f32).add(row * cols);
                match table.dtype() {
                    Dtype::F32 => dispatch(level, Widen { from: from.cast::<f32>(), to, len: cols }),
                    Dtype::F16 => dispatch(level, Widen { from: from.cast::<F16>(), to, len: cols }),
                    Dtype::Bf16 => dispatch(level, Widen { from: from.cast::<Bf16>(), to, len: cols }),
                    Dtype::I8 => unreachable!("no matrix is int8"),
                }
            }
        }
    });
    Ok(())
}

/// Computes `residual += x`.
pub(super) fn add(x: &CpuBuffer, residual: &mut CpuBuffer) -> Result<()> {
    if (x.rows(), x.cols()) != (residual.rows(), residual.cols()) {
        bail!(Internal, "{} x {} added to {} x {}", x.rows(), x.cols(), residual.rows(), residual.cols());
    }
    residual.as_mut_slice().iter_mut().zip(x.as_slice()).for_each(|(to, x)| *to += x);
    Ok(())
}

/// Kernel that computes `gate = silu(gate) * up`.
struct SiluMul {
    gate: *mut f32,
    up: *const f32,
    len: usize,
}

#[inline(always)]
unsafe fn silu_mul_lanes<S: Simd>(gate: S, up: S) -> S {
    // SAFETY: the caller guarantees that the level is available.
    unsafe {
        let one = S::splat(1.0);
        let zero = S::splat(0.0);
        let silu = gate.div(one.add(zero.sub(gate).exp()));
        // exp saturates below this bound, where silu is smaller than 1e-36 in magnitude: zero is exact enough.
        S::select_lt(gate, S::splat(-88.3), zero, silu).mul(up)
    }
}

impl Kernel for SiluMul {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.len - self.len % S::LANES;
        // SAFETY: both pointers are valid for len elements.
        unsafe {
            let mut at = 0;
            while at < whole {
                let (gate, up) = (S::load(self.gate.add(at)), S::load(self.up.add(at)));
                silu_mul_lanes(gate, up).store(self.gate.add(at));
                at += S::LANES;
            }
            if whole < self.len {
                let n = self.len - whole;
                let (gate, up) = (S::load_part(self.gate.add(whole), n), S::load_part(self.up.add(whole), n));
                silu_mul_lanes(gate, up).store_part(self.gate.add(whole), n);
            }
        }
    }
}

pub(super) fn silu_mul(pool: &mut Pool, level: Level, gate: &mut CpuBuffer, up: &CpuBuffer) -> Result<()> {
    if (gate.rows(), gate.cols()) != (up.rows(), up.cols()) {
        bail!(Internal, "gate of {} x {}, up of {} x {}", gate.rows(), gate.cols(), up.rows(), up.cols());
    }
    let len = up.as_slice().len();
    let to = gate.as_mut_slice().as_mut_ptr() as usize;
    pool.chunks(len, 1 << 13, |_, range| {
        // SAFETY: the level is available, and the ranges are disjoint and inside both buffers.
        unsafe {
            let (gate, up) = ((to as *mut f32).add(range.start), up.as_slice().as_ptr().add(range.start));
            dispatch(level, SiluMul { gate, up, len: range.len() });
        }
    });
    Ok(())
}
