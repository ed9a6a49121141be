//! Projections: `y = x · Wᵀ (+ b)`, which overwrites its output or adds to it. All projections of a call share their
//! input and one parallel region.
//!
//! Every output element is one sequence of additions over `cols`. Its order depends only on the level and the weight's
//! dtype, so a row's result does not depend on the other rows in the batch.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod dot;
#[cfg(target_arch = "x86_64")]
mod pack;

use super::level::Level;
use super::matrix::{CpuBuffer, CpuMatrix, CpuVector};
use super::memory::Aligned;
use super::per_thread::PerThread;
use super::pool::{Pool, claim};
use crate::bail;
use crate::error::Result;
use crate::tensor::Dtype;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;

/// One projection of the call's input.
pub(super) struct Task<'a> {
    pub weight: &'a CpuMatrix,
    pub bias: Option<&'a CpuVector>,
    pub out: &'a mut CpuBuffer,
    /// Whether to add to `out` instead of overwriting it.
    pub add: bool,
}

/// Converted copies of the input, one per kind of weight. The memory is kept for the next call.
#[derive(Default)]
pub(super) struct Packed {
    /// The input rounded to bf16, stored as f32.
    rounded: Aligned<f32>,
    /// The input as bf16, packed as rows or tiles.
    #[cfg(target_arch = "x86_64")]
    bf16: Aligned<u16>,
    #[cfg(target_arch = "x86_64")]
    scratch: PerThread<amx::Scratch>,
}

/// Destination of a kernel: `[rows, stride]` from `ptr`. Each element is written by one thread.
#[derive(Clone, Copy)]
struct Output {
    ptr: *mut f32,
    stride: usize,
    add: bool,
    /// Bias of `stride` elements, or null.
    bias: *const f32,
}

// SAFETY: work items write disjoint columns.
unsafe impl Send for Output {}
// SAFETY: for the same reason as Send.
unsafe impl Sync for Output {}

impl Output {
    /// Writes or adds one element, and adds the bias if there is one.
    ///
    /// # Safety
    /// The element is inside the output, and no other thread touches it.
    #[inline(always)]
    unsafe fn put(&self, row: usize, col: usize, value: f32) {
        // SAFETY: the caller upholds this function's contract, and the bias has an element per column.
        unsafe {
            let value = if self.bias.is_null() { value } else { value + *self.bias.add(col) };
            let place = self.ptr.add(row * self.stride + col);
            *place = if self.add { *place + value } else { value };
        }
    }
}

/// Computes all projections of one input. The caller has checked the shapes.
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
    let (half, full): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.weight.dtype() == Dtype::Bf16);
    if !half.is_empty() {
        bf16_products(pool, level, packed, x, &half)?;
    }
    if !full.is_empty() {
        run(pool, &full, COLUMNS, |_, job, columns, _| {
            let input = x.as_slice().as_ptr();
            // SAFETY: the level is available; input is [m, k]; the columns are inside and belong to this item only.
            unsafe { dot::product(level, input, m, job.weight, columns, job.out) };
        });
    }
    Ok(())
}

/// Products with bf16 weights; the input is rounded to bf16.
fn bf16_products(pool: &mut Pool, level: Level, packed: &mut Packed, x: &CpuBuffer, jobs: &[Job<'_>]) -> Result<()> {
    let m = x.rows();
    #[cfg(target_arch = "x86_64")]
    if level == Level::Amx {
        return amx_products(pool, packed, x, jobs);
    } else if level == Level::Avx512Bf16 {
        pack::rows(pool, x, &mut packed.bf16)?;
        let input = &packed.bf16;
        run(pool, jobs, COLUMNS, |_, job, columns, _| {
            // SAFETY: the level is available; the columns are inside and belong to this item only.
            unsafe { bf16::product(job, columns, input.as_ptr(), m) };
        });
        return Ok(());
    }
    dot::round_input(pool, x, &mut packed.rounded)?;
    let input = &packed.rounded;
    run(pool, jobs, COLUMNS, |_, job, columns, _| {
        // SAFETY: the level is available; input is [m, k]; the columns are inside and belong to this item only.
        unsafe { dot::product(level, input.as_ptr(), m, job.weight, columns, job.out) };
    });
    Ok(())
}

#[cfg(target_arch = "x86_64")]
fn amx_products(pool: &mut Pool, packed: &mut Packed, x: &CpuBuffer, jobs: &[Job<'_>]) -> Result<()> {
    use super::tile::Tiles;
    let (m, k) = (x.rows(), x.cols());
    pack::tiles(pool, x, &mut packed.bf16)?;
    packed.scratch.prepare(pool.threads(), |scratch| scratch.reserve(m, k))?;
    let (input, scratch) = (&packed.bf16, &packed.scratch);
    let columns = if m > amx::FEW { amx::PANEL } else { 32 };
    run(pool, jobs, columns, |thread, job, columns, ahead| {
        // SAFETY: the caller dispatched on this level, so it is available. Each thread uses its own scratch. The
        // columns are inside and belong to this item only. Configuring the tiles costs some tens of cycles.
        unsafe {
            let _tiles = Tiles::configure();
            let scratch = scratch.get(thread);
            let input = input.as_ptr().cast();
            if m > amx::FEW {
                amx::many(job, columns, input, m, ahead, scratch);
            } else {
                amx::few(job, columns, input, m, ahead, scratch);
            }
        }
    });
    Ok(())
}

struct Job<'a> {
    weight: &'a CpuMatrix,
    out: Output,
}

/// Number of outputs per work item of the dot products.
const COLUMNS: usize = 64;

/// Distributes the columns of all jobs over the pool. Calls `body(thread, job, columns, ahead)`, where `ahead` points
/// to the weights of the thread's next item. Each thread claims its next item before it computes the current one, so
/// that the next weights can be prefetched.
fn run(
    pool: &mut Pool,
    jobs: &[Job<'_>],
    columns: usize,
    body: impl Fn(usize, &Job<'_>, Range<usize>, *const u8) + Sync,
) {
    let items: usize = jobs.iter().map(|job| job.weight.rows().div_ceil(columns)).sum();
    let find = |mut item: usize| {
        let mut index = 0;
        while item >= jobs[index].weight.rows().div_ceil(columns) {
            item -= jobs[index].weight.rows().div_ceil(columns);
            index += 1;
        }
        let job = &jobs[index];
        (job, item * columns..((item + 1) * columns).min(job.weight.rows()))
    };
    let next = AtomicUsize::new(0);
    let claim = || claim(&next, items, 1).map(|range| find(range.start));
    pool.region(&|thread| {
        let mut item = claim();
        while let Some((job, columns)) = item {
            item = claim();
            let (ahead, at) = item.as_ref().map_or((job, 0), |(job, columns)| (*job, columns.start));
            let ahead = ahead.weight.bytes().as_ptr().wrapping_add(at * ahead.weight.cols() * 2);
            body(thread, job, columns, ahead);
        }
    });
}
