//! Projections: `y = x · Wᵀ (+ b)`, written or added. All of one call share their input and one parallel region.
//!
//! Every output element is one chain of additions over `cols` in an order that depends on the level and the
//! weight's dtype only, so a row does not notice which rows it is computed with.

mod dot;

use super::level::Level;
use super::matrix::{CpuBuffer, CpuMatrix, CpuVector};
use super::memory::Aligned;
use super::pool::{Pool, claim};
use crate::bail;
use crate::error::Result;
use crate::tensor::Dtype;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;

/// One projection of the input of a call.
pub(super) struct Task<'a> {
    pub weight: &'a CpuMatrix,
    pub bias: Option<&'a CpuVector>,
    pub out: &'a mut CpuBuffer,
    /// Add to `out` instead of overwriting it.
    pub add: bool,
}

/// Forms of the input that a kind of weight wants, kept for the next call.
#[derive(Default)]
pub(super) struct Packed {
    /// The input rounded to bf16, as f32.
    rounded: Aligned<f32>,
}

/// Where a kernel writes: `[rows, stride]` from `ptr`, each element by one thread.
#[derive(Clone, Copy)]
struct Output {
    ptr: *mut f32,
    stride: usize,
    add: bool,
    /// Of `stride` elements, or null.
    bias: *const f32,
}

// SAFETY: work items write disjoint columns.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// Writes or adds one element, bias included.
    ///
    /// # Safety
    /// The element is inside and no other thread touches it.
    #[inline(always)]
    unsafe fn put(&self, row: usize, col: usize, value: f32) {
        // SAFETY: by the contract; bias has an element per column.
        unsafe {
            let value = if self.bias.is_null() { value } else { value + *self.bias.add(col) };
            let place = self.ptr.add(row * self.stride + col);
            *place = if self.add { *place + value } else { value };
        }
    }
}

/// Computes all tasks of one input. Shapes are checked.
pub(super) fn linear(
    pool: &mut Pool,
    level: Level,
    packed: &mut Packed,
    x: &CpuBuffer,
    tasks: &mut [Task<'_>],
) -> Result<()> {
    let (m, k) = (x.rows(), x.cols());
    for task in tasks.iter_mut() {
        let (n, cols) = (task.weight.rows(), task.weight.cols());
        if cols != k {
            bail!(Internal, "projection of {cols} inputs applied to {k}");
        }
        if task.bias.is_some_and(|bias| bias.values.len() != n) {
            bail!(Internal, "bias of a projection does not have its {n} outputs");
        }
        if task.add {
            if (task.out.rows(), task.out.cols()) != (m, n) {
                bail!(Internal, "{m} x {n} added to {} x {}", task.out.rows(), task.out.cols());
            }
        } else {
            task.out.resize(m, n)?;
        }
    }
    if m == 0 {
        return Ok(());
    }
    if tasks.iter().any(|task| task.weight.dtype() == Dtype::Bf16) {
        dot::round_input(pool, level, x, &mut packed.rounded)?;
    }
    let jobs: Vec<Job<'_>> = tasks
        .iter_mut()
        .map(|task| Job {
            weight: task.weight,
            out: Output {
                ptr: task.out.as_mut_slice().as_mut_ptr(),
                stride: task.weight.rows(),
                add: task.add,
                bias: task.bias.map_or(std::ptr::null(), |bias| bias.values.as_ptr()),
            },
        })
        .collect();
    let rounded = packed.rounded.as_ptr() as usize;
    run(pool, &jobs, |job, columns| {
        let input = match job.weight.dtype() {
            Dtype::Bf16 => rounded as *const f32,
            Dtype::F32 | Dtype::F16 => x.as_slice().as_ptr(),
        };
        // SAFETY: the level is available; input is [m, k], the columns are inside, and no other item has them.
        unsafe { dot::product(level, input, m, job.weight, columns, job.out) };
    });
    Ok(())
}

struct Job<'a> {
    weight: &'a CpuMatrix,
    out: Output,
}

/// Outputs claimed at a time.
const COLUMNS: usize = 64;

/// Spreads the columns of all jobs over the pool.
fn run(pool: &mut Pool, jobs: &[Job<'_>], body: impl Fn(&Job<'_>, Range<usize>) + Sync) {
    let items: usize = jobs.iter().map(|job| job.weight.rows().div_ceil(COLUMNS)).sum();
    let next = AtomicUsize::new(0);
    pool.region(&|_| {
        while let Some(range) = claim(&next, items, 1) {
            let (mut item, mut index) = (range.start, 0);
            while item >= jobs[index].weight.rows().div_ceil(COLUMNS) {
                item -= jobs[index].weight.rows().div_ceil(COLUMNS);
                index += 1;
            }
            let rows = jobs[index].weight.rows();
            body(&jobs[index], item * COLUMNS..((item + 1) * COLUMNS).min(rows));
        }
    });
}
