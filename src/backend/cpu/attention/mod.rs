//! Causal attention over block tables, with an online softmax over tiles of positions.
//!
//! Tiles begin at multiples of [`TILE`] positions and are visited in ascending order, whichever rows are computed
//! together. A row's result therefore does not depend on how prompts are chunked or batched. Masked positions have
//! weight zero. Slots that are masked for every row of an item are never read.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod parts;
mod stored;
#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod vector;

use super::level::Level;
use super::matrix::CpuBuffer;
use super::memory::Aligned;
use super::per_thread::PerThread;
use super::pool::{Pool, claim};
use super::rope::check;
use super::simd::{Bf16, F16};
use super::slab::KvSlab;
use crate::backend::{AttentionArgs, BlockStore, KvGeometry, SeqSpan};
use crate::error::Result;
use crate::tensor::Dtype;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;

/// Number of positions in a tile.
const TILE: usize = 64;
/// Largest number of query rows, over all heads of a group, that share a tile of K and V.
const QUERIES: usize = 128;
/// Initial maximum, before the first visible position; lower than every score.
const FLOOR: f32 = -1e30;

/// Working memory of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    floats: Aligned<f32>,
}

/// Working memory of every thread, kept between calls.
pub(super) type Scratches = PerThread<Scratch>;

/// Unit of work: consecutive rows of one span, with one KV head.
struct Item<'a> {
    span: &'a SeqSpan,
    /// Rows of the batch that belong to this item.
    rows: Range<usize>,
    kv_head: usize,
}

impl Item<'_> {
    /// Position in the sequence of a row of the batch.
    fn position(&self, row: usize) -> usize {
        self.span.position as usize + row - self.span.row as usize
    }

    /// Positions that at least one row of the item attends to.
    fn visible(&self, window: Option<u32>) -> Range<usize> {
        let first = self.position(self.rows.start);
        let low = window.map_or(0, |window| (first + 1).saturating_sub(window as usize));
        low..self.position(self.rows.end - 1) + 1
    }
}

/// Arguments and layout shared by every item of one call.
struct Call<'a> {
    q: &'a CpuBuffer,
    out: *mut f32,
    args: &'a AttentionArgs<'a>,
    kv: &'a KvSlab,
    geometry: KvGeometry,
    dim: usize,
    /// Number of query heads per KV head.
    group: usize,
}

// SAFETY: each item writes only its own rows and heads of `out`, so threads write disjoint parts.
unsafe impl Sync for Call<'_> {}

impl Call<'_> {
    /// Pointer to K or V at a position of a span, and the number of tokens from there to the end of the block.
    fn tokens(&self, item: &Item<'_>, value: bool, position: usize) -> (*const u8, usize) {
        let block_tokens = self.geometry.block_tokens as usize;
        let block = self.args.batch.tables[item.span.table as usize + position / block_tokens];
        let offset = position % block_tokens;
        let head = self.kv.head(block, self.args.layer, value, item.kv_head);
        // SAFETY: the offset is inside the head's part of the block.
        (unsafe { head.add(offset * self.geometry.row_bytes()) }, block_tokens - offset)
    }

    /// Pointer to the scales of the tokens that [`Self::tokens`] returns. Only for int8 KV.
    fn scales(&self, item: &Item<'_>, value: bool, position: usize) -> *const f32 {
        let block_tokens = self.geometry.block_tokens as usize;
        let block = self.args.batch.tables[item.span.table as usize + position / block_tokens];
        let head = self.kv.head(block, self.args.layer, value, item.kv_head);
        // SAFETY: the offset is inside the head's part of the block; blocks, stripes and scales are aligned to 4 bytes.
        unsafe { head.add(self.geometry.scales_offset()).cast::<f32>().add(position % block_tokens) }
    }

    /// Positions of the tile starting at `tile` that the row at `position` attends to, relative to the tile.
    fn lanes(&self, position: usize, tile: usize) -> Range<usize> {
        let low = self.args.window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
        let high = (position + 1).saturating_sub(tile).min(TILE);
        low.saturating_sub(tile).min(high)..high
    }
}

pub(super) fn attention(
    pool: &mut Pool,
    level: Level,
    scratches: &mut Scratches,
    q: &CpuBuffer,
    args: &AttentionArgs<'_>,
    kv: &KvSlab,
    out: &mut CpuBuffer,
) -> Result<()> {
    let geometry = *kv.geometry();
    check(q.rows(), q.cols(), args, &geometry)?;
    out.resize(q.rows(), q.cols())?;
    let dim = geometry.head_dim as usize;
    if q.rows() == 0 || dim == 0 {
        return Ok(());
    }
    let kv_heads = geometry.kv_heads as usize;
    let group = args.heads / kv_heads;
    let tile_rows = (QUERIES / group).max(1);
    let mut items = Vec::new();
    for span in &args.batch.spans {
        let rows = span.row as usize..(span.row + span.rows) as usize;
        for start in rows.clone().step_by(tile_rows) {
            for kv_head in 0..kv_heads {
                items.push(Item { span, rows: start..(start + tile_rows).min(rows.end), kv_head });
            }
        }
    }
    let floats = vector::scratch_len(dim, tile_rows * group);
    #[cfg(target_arch = "x86_64")]
    let floats = floats.max(parts::scratch_len(dim, tile_rows * group));
    scratches.prepare(pool.threads(), |scratch| scratch.floats.resize(floats))?;
    let call = Call { q, out: out.as_mut_slice().as_mut_ptr(), args, kv, geometry, dim, group };
    let (call, items, scratches) = (&call, &items, &*scratches);
    let next = AtomicUsize::new(0);
    pool.region(&|thread| {
        // SAFETY: `thread` is this thread's own index.
        let scratch = unsafe { scratches.get(thread) };
        while let Some(range) = claim(&next, items.len(), 1) {
            // Later rows of a prompt attend to more positions. Starting with the longest items balances the threads.
            let item = &items[items.len() - 1 - range.start];
            // SAFETY: the level is available, the shapes were checked, and the scratch is large enough.
            unsafe { run(level, call, item, scratch) };
        }
    });
    Ok(())
}

/// # Safety
/// The level is available, the item belongs to the call, and the scratch has the length that `scratch_len` returns.
unsafe fn run(level: Level, call: &Call<'_>, item: &Item<'_>, scratch: &mut Scratch) {
    // SAFETY: the caller upholds the same contract.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if level == Level::Amx && matches!(call.geometry.dtype, Dtype::Bf16 | Dtype::I8) {
            return amx::run(call, item, scratch);
        }
        match call.geometry.dtype {
            Dtype::F32 => vector::run::<f32>(level, call, item, scratch),
            Dtype::F16 => vector::run::<F16>(level, call, item, scratch),
            Dtype::Bf16 => vector::run::<Bf16>(level, call, item, scratch),
            Dtype::I8 => vector::run::<stored::Int8>(level, call, item, scratch),
        }
    }
}
