//! CUDA devices: weights, KV and activations in their memory, the kernels of kernels/ for the operations of a step. The
//! driver is found at run time; without one there are no devices. So is cuBLASLt, for products of many rows; without it
//! kernels of kernels/ do them.
//!
//! | to change | look in |
//! | --- | --- |
//! | the driver's functions and errors | `driver` |
//! | devices, loading of kernels | `machine`, `context`, `device`, `kernels` |
//! | memory, streams, launches | `memory`, `stream` |
//! | memory that other processes map, or other devices read | `shareable`, `peer` |
//! | priorities, parts of the multiprocessors | `engine_streams`, `partition` |
//! | how weights get there, and are shared with other processes | `upload`, `load`, `depot`, `tensors` |
//! | the data that a step sends to the device | `step`, `layout` |
//! | recorded steps | `graph` |
//! | which kernel runs for an operation | `rows`, `attention`, `product` |
//! | products through cuBLASLt | `blas`, `cublaslt` |
//! | where cuBLASLt is searched for | `cublaslt`, `wheels` |
//! | the KV pool, copies into and out of it | `slab`, `pool`, `pool_copy`, `transfers`, `staging` |
//! | sampling on the device | `device_sampling` |
//! | activations for tests and benches | `host` |

mod attention;
mod blas;
mod context;
mod cublaslt;
mod depot;
mod device;
mod device_sampling;
mod driver;
mod engine_streams;
mod graph;
mod host;
mod kernels;
mod layout;
mod load;
mod machine;
mod memory;
mod partition;
mod peer;
mod pool;
mod pool_copy;
mod product;
mod rows;
mod shareable;
mod slab;
mod staging;
mod step;
mod stream;
mod tensors;
mod transfers;
mod upload;
mod wheels;

pub use device::Device;
pub(super) use device::info;
pub use load::Loader;
pub(super) use machine::count;
pub use pool::CudaPool;
pub use slab::CudaSlab;
pub use tensors::{CudaBuffer, CudaMatrix, CudaProjections, CudaVector};

use super::{
    AttentionArgs, Backend, Batch, BlockStore, ComputeShare, DeviceSample, DeviceSamplingBatch, KvGeometry, Linear,
    RopeRows,
};
use crate::bail;
use crate::error::Result;
use crate::tensor::Dtype;
use engine_streams::EngineStreams;
use graph::{Graph, Graphs, Turn};
use layout::{Element, KvLayout};
use memory::PinnedMemory;
use std::sync::Arc;
use step::{StepBuffers, StepData};
use stream::Stream;

/// One engine's use of a device: its streams, its step data and its recorded graphs.
pub struct CudaBackend {
    device: Arc<Device>,
    /// The one of `streams` in use: of high priority while the engine decodes. Declared before `streams`, dropped first.
    stream: Arc<Stream>,
    streams: EngineStreams,
    urgent: bool,
    /// Type of activations between the matrix products; the residual stream and logits are f32.
    element: Element,
    /// Query heads for each KV head.
    group: u32,
    step: StepData,
    attention: attention::Plan,
    /// None where own kernels compute all products.
    blas: Option<blas::Blas>,
    graphs: Graphs,
    /// Set when memory that a step uses has moved.
    grew: bool,
    device_sampler: device_sampling::DeviceSampler,
    fetched: PinnedMemory,
}

/// Decode batches are padded to one of these numbers of rows, so that few graphs serve all of them.
const ROWS: [usize; 14] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256];

impl CudaBackend {
    /// A backend for a model with matrices of type `dtype`, `heads` query heads and these windows, over the pool `kv`.
    pub fn new(
        device: &Arc<Device>,
        dtype: Dtype,
        heads: u32,
        windows: impl Iterator<Item = Option<u32>>,
        kv: &CudaSlab,
    ) -> Result<CudaBackend> {
        device.load_kernels()?;
        let element = Element::of(dtype)?;
        let streams = EngineStreams::new(device, 0, 0)?;
        Ok(CudaBackend {
            element,
            group: heads / kv.geometry().kv_heads,
            stream: streams.of(false).clone(),
            urgent: false,
            step: StepData::new(device)?,
            attention: attention::Plan::new(element, kv.geometry(), windows)?,
            blas: blas::Blas::new(device, element, streams.multiprocessors())?,
            streams,
            graphs: Graphs::default(),
            grew: false,
            device_sampler: device_sampling::DeviceSampler::new(device)?,
            fetched: PinnedMemory::new(device, 1)?,
            device: device.clone(),
        })
    }

    /// UNSUPPORTED if there are no kernels for KV of this shape.
    pub fn check(geometry: &KvGeometry) -> Result<()> {
        attention::check(geometry)?;
        KvLayout::of(geometry).map(|_| ())
    }

    /// The padded sizes of a batch, and whether other batches are likely to share them.
    fn room(&self, batch: &Batch, block_tokens: u32) -> (StepBuffers, bool) {
        let rows = batch.tokens.len();
        let filled = ROWS.iter().find(|filled| **filled >= rows);
        let decodes = batch.spans.len() == rows && batch.logit_rows.len() == rows;
        match filled {
            Some(filled) if decodes => {
                let pieces: usize = batch.spans.iter().map(|span| attention::most_pieces(span.position)).sum();
                let pieces = pieces.max(*filled).next_power_of_two();
                // The most blocks that the positions of a piece can touch, for every piece.
                let tables = pieces * (attention::SPLIT.div_ceil(block_tokens) as usize + 1);
                (StepBuffers { rows: *filled, logit_rows: *filled, tables, pieces }, true)
            }
            _ => {
                (StepBuffers { rows, logit_rows: batch.logit_rows.len(), tables: batch.tables.len(), pieces: 0 }, false)
            }
        }
    }

    fn shape(&mut self, out: &mut CudaBuffer, rows: u32, cols: u32, element: Element) -> Result<()> {
        self.grew |= out.resize(&self.device, rows, cols, element)?;
        Ok(())
    }
}

impl Backend for CudaBackend {
    type Buffer = CudaBuffer;
    type Matrix = CudaMatrix;
    type Vector = CudaVector;
    type Projections = CudaProjections;
    type Kv = CudaSlab;

    fn step(
        &mut self,
        batch: &Batch,
        rope: &RopeRows,
        kv: &CudaSlab,
        mut body: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let block_tokens = kv.geometry().block_tokens;
        let (room, repeats) = self.room(batch, block_tokens);
        self.step.pack(batch, rope, block_tokens, &room);
        self.attention.pack(batch, self.group, &room, &mut self.step.packed);
        if self.step.packed.send(&self.device, &self.stream)? {
            self.graphs.clear();
        }
        match if repeats { self.graphs.turn(&room) } else { Turn::Run } {
            Turn::Replay => return self.graphs.replay(&room, &self.stream),
            Turn::Record => {
                let (device, stream) = (self.device.clone(), self.stream.clone());
                match Graph::record(&device, &stream, || body(self)) {
                    Ok(graph) => {
                        self.graphs.insert(&room, graph);
                        return self.graphs.replay(&room, &self.stream);
                    }
                    // A step that cannot be recorded, or whose graph does not fit into memory, can still run. If the
                    // device itself has failed, that run reports it.
                    Err(error) => {
                        crate::log!(Warn, "cuda", "steps of {} rows are not recorded: {error}", room.rows);
                        self.graphs.give_up(&room);
                    }
                }
            }
            Turn::Run => {}
        }
        self.grew = false;
        body(self)?;
        if std::mem::take(&mut self.grew) {
            self.graphs.clear(); // they use what was there before
        }
        Ok(())
    }

    fn embed(&mut self, table: &CudaMatrix, tokens: &[u32], out: &mut CudaBuffer) -> Result<()> {
        self.run_embed(table, tokens, out)
    }

    fn rms_norm(
        &mut self,
        x: &CudaBuffer,
        rows: Option<&[u32]>,
        weight: &CudaVector,
        eps: f32,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        self.run_rms_norm(x, rows, weight, eps, out)
    }

    fn project(&mut self, x: &CudaBuffer, projections: &CudaProjections, outs: &mut [&mut CudaBuffer]) -> Result<()> {
        let CudaProjections { linear, outputs } = projections;
        if outs.len() != outputs.len() {
            bail!(Internal, "{} projections into {} buffers", outputs.len(), outs.len());
        }
        let Some((all, others)) = outs.split_first_mut() else { return Ok(()) };
        others.iter_mut().for_each(|out| out.release()); // they may be columns of the first
        self.shape(all, x.rows, linear.weight.rows, self.element)?;
        self.grew |= product::run(&self.stream, self.blas.as_mut(), x, linear, all, false)?;
        all.split(outputs, others);
        Ok(())
    }

    fn project_gated(
        &mut self,
        x: &CudaBuffer,
        projections: &CudaProjections,
        gate: &mut CudaBuffer,
        up: &mut CudaBuffer,
    ) -> Result<()> {
        if !product::is_gated(x.rows, projections) {
            self.project(x, projections, &mut [gate, up])?;
            return self.silu_mul(gate, up);
        }
        up.release(); // as above
        self.shape(gate, x.rows, projections.outputs[0], self.element)?;
        product::gated(&self.stream, x, projections, gate)
    }

    fn product(&mut self, x: &CudaBuffer, linear: &Linear<Self>, out: &mut CudaBuffer) -> Result<()> {
        self.shape(out, x.rows, linear.weight.rows, Element::F32)?;
        self.grew |= product::run(&self.stream, self.blas.as_mut(), x, linear, out, false)?;
        Ok(())
    }

    fn linear_add(&mut self, x: &CudaBuffer, linear: &Linear<Self>, residual: &mut CudaBuffer) -> Result<()> {
        residual.expect(Element::F32, linear.weight.rows)?;
        self.grew |= product::run(&self.stream, self.blas.as_mut(), x, linear, residual, true)?;
        Ok(())
    }

    fn add(&mut self, x: &CudaBuffer, residual: &mut CudaBuffer) -> Result<()> {
        self.run_add(x, residual)
    }

    fn rope_store(
        &mut self,
        q: &mut CudaBuffer,
        k: &mut CudaBuffer,
        v: &CudaBuffer,
        norms: Option<(&CudaVector, &CudaVector, f32)>,
        _rope: &RopeRows,
        args: &AttentionArgs<'_>,
        kv: &CudaSlab,
    ) -> Result<()> {
        self.run_rope_store([q, k, v], norms, args, kv)
    }

    fn attention(
        &mut self,
        q: &CudaBuffer,
        args: &AttentionArgs<'_>,
        kv: &CudaSlab,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        q.expect(self.element, args.heads as u32 * kv.geometry().head_dim)?;
        self.shape(out, q.rows, q.cols, self.element)?;
        self.grew |= self.attention.make_room(&self.device, args.heads, kv.geometry())?;
        self.attention.run(&self.stream, &self.step, q, args, kv, out)
    }

    fn silu_mul(&mut self, gate: &mut CudaBuffer, up: &CudaBuffer) -> Result<()> {
        self.run_silu_mul(gate, up)
    }

    fn draw(
        &mut self,
        logits: &mut CudaBuffer,
        draws: &DeviceSamplingBatch,
        out: &mut Vec<DeviceSample>,
    ) -> Result<bool> {
        logits.expect(Element::F32, logits.cols)?;
        self.device_sampler.run(&self.device, &self.stream, logits, draws, out)?;
        Ok(true)
    }

    fn download(&mut self, x: &CudaBuffer, rows: &[u32], out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        let cols = x.cols as usize;
        let n = rows.len() * cols;
        if let Some(memory) = x.memory().filter(|_| n > 0) {
            x.expect(Element::F32, x.cols)?;
            if self.fetched.words() < n {
                self.fetched = PinnedMemory::new(&self.device, n.next_power_of_two())?;
            }
            let mut done = 0;
            // Rows that follow one another go in one copy.
            for run in rows.chunk_by(|a, b| a + 1 == *b) {
                let (from, bytes) = (run[0] as usize * cols * 4, run.len() * cols * 4);
                self.fetched.receive(done, bytes, memory, from, &self.stream)?;
                done += bytes;
            }
        }
        self.stream.synchronize()?;
        if out.try_reserve(n).is_err() {
            bail!(OutOfMemory, "cannot copy {} x {cols} activations", rows.len());
        }
        out.extend(self.fetched.as_slice()[..n].iter().map(|word| f32::from_bits(*word)));
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        self.stream.synchronize()?;
        self.graphs.clear();
        Ok(())
    }

    fn multiprocessors(&self) -> u32 {
        self.streams.multiprocessors().unwrap_or(self.device.multiprocessors)
    }

    /// Recorded graphs stay valid: they run with the priority of the stream that they are launched into.
    fn set_urgent(&mut self, urgent: bool) -> Result<()> {
        if self.urgent != urgent {
            self.stream.synchronize()?;
            self.urgent = urgent;
            self.stream = self.streams.of(urgent).clone();
        }
        Ok(())
    }

    fn set_compute_share(&mut self, share: ComputeShare) -> Result<()> {
        let streams: EngineStreams = share.into_inner()?;
        // Recorded graphs stay on the multiprocessors for which they were recorded, so they are dropped.
        self.release()?;
        if let Some(blas) = &mut self.blas {
            blas.set_multiprocessors(streams.multiprocessors())?;
        }
        self.stream = streams.of(self.urgent).clone();
        self.streams = streams;
        Ok(())
    }
}
