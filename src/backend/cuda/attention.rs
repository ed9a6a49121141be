//! Attention on a device. The host plans the work of each row, once per step and kind of layer.
//!
//! The context of a single row is cut into pieces at fixed positions; each piece is the work of one block, and the pieces are
//! merged in order of position (flash-decoding). A chunk of a prompt is cut into tiles of rows for the tensor cores
//! (FlashAttention). Which of the two a row takes, and where its pieces lie, depends on its own sequence alone.

use super::device::Device;
use super::layout::{Element, KvLayout, named};
use super::memory::Allocation;
use super::slab::CudaSlab;
use super::step::{Packed, Part, StepBuffers, StepData};
use super::stream::{Shape, Stream, arg};
use super::tensors::CudaBuffer;
use crate::backend::{AttentionArgs, Batch, BlockStore, KvGeometry, SeqSpan};
use crate::bail;
use crate::error::Result;
use crate::tensor::Dtype;
use cleave_kernels::shapes;
use std::sync::Arc;

/// Positions in a piece of a row's context.
pub(super) const SPLIT: u32 = shapes::DECODE_SPLIT;
/// Slot of a piece that is the whole context of its row and so needs no merging.
const NO_SLOT: u32 = shapes::NO_SLOT;
/// A step's attention work for all layers with the same window.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    pieces: List,
    merges: List,
    tiles: List,
    /// Slots of the workspace for results to merge.
    slots: usize,
}

/// A work list on the device: its length there, and its capacity.
#[derive(Clone, Copy, Debug, Default)]
struct List {
    list: Part,
    count: Part,
    most: u32,
}

impl List {
    fn push<const N: usize>(items: &[[u32; N]], most: usize, step: &mut Packed) -> List {
        let most = most.max(items.len());
        List {
            count: step.push(std::iter::once(items.len() as u32), 1),
            list: step.push(items.iter().flatten().copied(), most * N),
            most: most as u32,
        }
    }
}

/// Greatest number of pieces of a row at `position`.
pub(super) fn most_pieces(position: u32) -> usize {
    (position / SPLIT + 1) as usize
}

/// The attention work of an engine's steps, and the workspace for results to merge.
pub(super) struct Plan {
    windows: Vec<Option<u32>>,
    works: Vec<Work>,
    decode: Kernel,
    merge: Kernel,
    /// None where prompts are computed row by row as well.
    prefill: Option<Kernel>,
    /// Rows of a tile: pairs of a query row and a head of the group.
    tile: u32,
    sums: Option<Allocation>,
    weights: Option<Allocation>,
}

struct Kernel {
    name: String,
    shared: u32,
}

/// UNSUPPORTED if there is no kernel for this head size.
pub(super) fn check(geometry: &KvGeometry) -> Result<()> {
    if !shapes::HEAD_SIZES.contains(&geometry.head_dim) {
        bail!(Unsupported, "heads of {} on a CUDA device: expected one of {:?}", geometry.head_dim, shapes::HEAD_SIZES);
    }
    Ok(())
}

impl Plan {
    /// A plan for a model whose layers have these windows.
    pub fn new(element: Element, kv: &KvGeometry, windows: impl Iterator<Item = Option<u32>>) -> Result<Plan> {
        check(kv)?;
        let mut windows: Vec<_> = windows.collect();
        windows.sort_unstable();
        windows.dedup();
        let (size, stored, head) = (named!(element, ""), stored(kv.dtype), kv.head_dim);
        let same = size == stored || kv.dtype == Dtype::I8;
        let prefill = (element != Element::F32 && same).then(|| Kernel {
            name: format!("attention_prefill_{size}_{stored}_{head}"),
            shared: shapes::prefill_shared(head),
        });
        Ok(Plan {
            works: vec![Work::default(); windows.len()],
            windows,
            decode: Kernel {
                name: format!("attention_decode_{size}_{stored}_{head}"),
                shared: if element == Element::F32 { shapes::decode_float_shared(head) } else { shapes::DECODE_SHARED },
            },
            merge: Kernel { name: format!("attention_merge_{size}_{head}"), shared: shapes::MERGE_SHARED },
            prefill,
            tile: shapes::prefill_rows(head),
            sums: None,
            weights: None,
        })
    }

    /// Adds the batch's work to the step's data.
    pub fn pack(&mut self, batch: &Batch, group: u32, room: &StepBuffers, step: &mut Packed) {
        let tile_rows = (self.tile / group).max(1);
        for (window, work) in self.windows.iter().zip(&mut self.works) {
            let mut todo = Todo::default();
            for (index, span) in batch.spans.iter().enumerate() {
                if span.rows == 1 || self.prefill.is_none() {
                    (0..span.rows).for_each(|row| todo.row(index as u32, span, row, *window));
                } else {
                    todo.tiles.extend((0..span.rows).step_by(tile_rows as usize).map(|row| [index as u32, row]));
                }
            }
            // Longest contexts first, so that only short work is left at the end.
            let seen = |[span, row]: &[u32; 2]| batch.spans[*span as usize].position + row;
            todo.tiles.sort_by_key(|tile| std::cmp::Reverse(seen(tile)));
            *work = Work {
                slots: (todo.slots as usize).max(room.pieces),
                pieces: List::push(&todo.pieces, room.pieces, step),
                merges: List::push(&todo.merges, if room.pieces > 0 { room.rows } else { 0 }, step),
                tiles: List::push(&todo.tiles, 0, step),
            };
        }
    }

    /// Makes the workspace large enough. True if it moved.
    pub fn make_room(&mut self, device: &Arc<Device>, heads: usize, kv: &KvGeometry) -> Result<bool> {
        let slots = self.works.iter().map(|work| work.slots).max().unwrap_or(0);
        let outputs = slots * heads;
        let moved = grow(&mut self.sums, device, outputs * kv.head_dim as usize * 4)?;
        Ok(grow(&mut self.weights, device, outputs * 2 * 4)? | moved)
    }

    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &self,
        stream: &Stream,
        step: &StepData,
        q: &CudaBuffer,
        args: &AttentionArgs<'_>,
        kv: &CudaSlab,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        let Some(work) = self.windows.iter().position(|window| *window == args.window).map(|at| self.works[at]) else {
            bail!(Internal, "a layer with a window of {:?} that was not planned for", args.window);
        };
        let geometry = *kv.geometry();
        let (heads, group) = (args.heads as u32, args.heads as u32 / geometry.kv_heads);
        let address = |memory: &Option<Allocation>| memory.as_ref().map_or(0, Allocation::address);
        let (sums, weights) = (address(&self.sums), address(&self.weights));

        // The macro ATTENTION_ARGUMENTS; the list and its count follow.
        let (q_at, kv_at, out_at) = (q.address(), kv.address(), out.address());
        let (layout, layer, window) = (KvLayout::of(&geometry)?, args.layer as u32, args.window.unwrap_or(0));
        let (tables, spans) = (step.address(step.tables), step.address(step.spans));
        let inputs = [
            arg(&q_at),
            arg(&q.stride),
            arg(&kv_at),
            arg(&layout),
            arg(&layer),
            arg(&heads),
            arg(&args.scale),
            arg(&window),
            arg(&tables),
            arg(&spans),
            arg(&out_at),
            arg(&out.cols),
        ];
        let launch = |kernel: &Kernel, threads: u32, of: List, blocks: u32, more: &[*mut std::ffi::c_void]| {
            let (list, count) = (step.address(of.list), step.address(of.count));
            let mut arguments = [&inputs[..], &[arg(&list), arg(&count)], more].concat();
            let shape = Shape { grid: [of.most, blocks, 1], threads, shared: kernel.shared };
            stream.launch(&kernel.name, shape, &mut arguments)
        };
        let blocks = geometry.kv_heads * group.div_ceil(shapes::DECODE_HEADS);
        launch(&self.decode, shapes::DECODE_THREADS, work.pieces, blocks, &[arg(&sums), arg(&weights)])?;
        if let Some(prefill) = &self.prefill {
            launch(prefill, shapes::PREFILL_THREADS, work.tiles, geometry.kv_heads * group.div_ceil(self.tile), &[])?;
        }
        let (list, count) = (step.address(work.merges.list), step.address(work.merges.count));
        stream.launch(
            &self.merge.name,
            Shape { grid: [work.merges.most, heads, 1], threads: shapes::DECODE_THREADS, shared: self.merge.shared },
            &mut [arg(&out_at), arg(&out.cols), arg(&heads), arg(&list), arg(&count), arg(&sums), arg(&weights)],
        )
    }
}

/// Makes memory large enough without keeping its contents, which belong to finished steps. True if it moved.
fn grow(memory: &mut Option<Allocation>, device: &Arc<Device>, bytes: usize) -> Result<bool> {
    let grows = memory.as_ref().is_none_or(|memory| memory.bytes() < bytes);
    if grows {
        *memory = None;
        *memory = Some(Allocation::new(device, bytes.next_power_of_two())?);
    }
    Ok(grows)
}

/// The name of a KV type in the names of kernels.
fn stored(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
        Dtype::I8 => "int8",
    }
}

/// Work items as the structs DecodeWork, DecodeMerge and PrefillWork of kernels/include/layout.cuh.
#[derive(Default)]
struct Todo {
    pieces: Vec<[u32; 4]>,
    merges: Vec<[u32; 3]>,
    tiles: Vec<[u32; 2]>,
    slots: u32,
}

impl Todo {
    /// Adds the pieces of one row, `row` counted within the span.
    fn row(&mut self, index: u32, span: &SeqSpan, row: u32, window: Option<u32>) {
        let position = span.position + row;
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window)) / SPLIT;
        let last = position / SPLIT;
        let row = span.row + row;
        if first == last {
            return self.pieces.push([row, index, first * SPLIT, NO_SLOT]);
        }
        let slots = last - first + 1;
        self.merges.push([row, self.slots, slots]);
        self.pieces.extend((0..slots).map(|i| [row, index, (first + i) * SPLIT, self.slots + i]));
        self.slots += slots;
    }
}
