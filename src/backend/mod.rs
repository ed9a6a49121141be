//! Devices: memory for KV blocks, weights where a kernel wants them, and the fused operations of one decoder
//! step. Model code is written once over [`Backend`]; [`cpu`] and [`cuda`] implement it, and the CPU's portable
//! form is the oracle of every kernel test.
//!
//! **The rule of every kernel:** a row's result never depends on the other rows of the batch, on how a prompt
//! was cut into chunks or on thread counts. Reductions have one fixed order per element whatever the batch is.

#[allow(unsafe_code)]
pub mod cpu;
#[allow(unsafe_code)]
pub mod cuda;
mod device_sampling;
mod geometry;
pub(crate) mod int8;

pub use device_sampling::{DeviceSample, DeviceSamplingBatch, DeviceSamplingRow};
pub use geometry::KvGeometry;

use crate::bail;
use crate::error::Result;
use crate::sys::bytes::{ByteSource, ByteTarget};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU8;

/// Index of a block in a [`BlockStore`].
pub type BlockId = u32;

/// The memory of a KV pool. Who may touch which block is decided by `kv`: a block is written by its one owner
/// and read by those it was shared with afterwards, so the store itself needs no lock.
pub trait BlockStore: Send + Sync {
    fn geometry(&self) -> &KvGeometry;
    fn n_blocks(&self) -> usize;
    /// Copies `out.len()` bytes of block `id` from `offset`. Panics out of range; fails if its device does.
    fn read(&self, id: BlockId, offset: usize, out: &mut [u8]) -> Result<()>;
    /// Overwrites bytes of block `id` from `offset`. Panics out of range; fails if its device does.
    fn write(&self, id: BlockId, offset: usize, data: &[u8]) -> Result<()>;
    /// Copies a whole block. Fails if its device does.
    fn copy(&self, from: BlockId, to: BlockId) -> Result<()>;

    /// The block where it lies, if that is host memory. Panics out of range.
    fn source(&self, _id: BlockId) -> Option<ByteSource<'_>> {
        None
    }

    /// The same, to be written by the block's one owner.
    fn target(&self, _id: BlockId) -> Option<ByteTarget<'_>> {
        None
    }

    /// The whole pool, block after block, if that is host memory: for what reads and writes it beside the CPU.
    fn pool(&self) -> Option<&[AtomicU8]> {
        None
    }

    /// The pool in a device's memory, if it lies there: for copies that do not go through the host.
    fn on_device(&self) -> Option<&cuda::DevicePool> {
        None
    }

    /// What another process of this machine needs to map the pool read-only. UNSUPPORTED if it cannot.
    fn share(&self) -> Result<PoolExport> {
        bail!(Unsupported, "the pool's memory cannot be shared with other processes")
    }

    /// Pays for the page faults of the pool's memory now rather than in the first transfer.
    fn populate(&self) -> Result<()> {
        Ok(())
    }
}

/// The memory of a pool, block after block, for another process.
pub struct PoolExport {
    pub fd: OwnedFd,
    pub bytes: usize,
    /// The UUID of the device that it is of; None: host memory.
    pub device: Option<[u8; 16]>,
}

/// Told how many bytes of weights have been loaded, and how many there are. What it returns ends the loading, if that is an
/// error.
pub type Progress<'a> = dyn FnMut(u64, u64) -> Result<()> + 'a;

/// Rows of one sequence in a batch: consecutive tokens at consecutive positions.
#[derive(Clone, Copy, Debug)]
pub struct SeqSpan {
    /// First row in the batch and number of rows.
    pub row: u32,
    pub rows: u32,
    /// Position in the sequence of the first row; rows attend to positions `0..=own`.
    pub position: u32,
    /// Where its block table lies in [`Batch::tables`]; it covers `position + rows` tokens or more.
    pub table: u32,
    pub table_len: u32,
}

/// One step's work for a model: the rows of all scheduled sequences, packed.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token of each row.
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// Per row, the sequence length that a length-dependent rope (dynamic NTK) goes by: the end of the prompt
    /// that a prompt token belongs to, position + 1 for a generated token.
    pub rope_lens: Vec<u32>,
    pub spans: Vec<SeqSpan>,
    /// The block tables of all spans, one after the other.
    pub tables: Vec<BlockId>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
}

/// A projection: `y = x · Wᵀ (+ b)`, W row-major `[outputs, inputs]` as checkpoints store it.
pub struct Linear<B: Backend> {
    pub weight: B::Matrix,
    pub bias: Option<B::Vector>,
}

/// Rotation angles of every row of a step, computed once and used by all layers: `[rows, head_dim / 2]` each,
/// attention scaling (yarn) already multiplied in. Halves are rotated as in Hugging Face checkpoints:
/// `(x[i], x[i + head_dim/2])`.
#[derive(Clone, Debug, Default)]
pub struct RopeRows {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

/// What the attention operations of a layer need to know.
pub struct AttentionArgs<'a> {
    pub layer: usize,
    pub heads: usize,
    /// Softmax scale.
    pub scale: f32,
    /// Sliding window: a row at position p attends to positions > p - window. None: all.
    pub window: Option<u32>,
    pub batch: &'a Batch,
}

/// Operations of one decoder step on one device. A backend belongs to one engine (threads, streams, scratch);
/// matrices and KV are shared between engines. Buffers are `[rows, cols]` of f32 on the device.
pub trait Backend: Send + Sized {
    /// Activations. Resized by the operation that writes it; memory is kept for the next step.
    type Buffer: Default + Send;
    /// A weight matrix in the checkpoint's dtype, used in place where its form allows.
    type Matrix: Send + Sync;
    /// A norm weight or bias.
    type Vector: Send + Sync;
    /// Projections of one input, as one product where the device is better off with that.
    type Projections: Send + Sync;
    /// The KV pool.
    type Kv: BlockStore;

    /// Runs the operations of a step, `body`; or, as they are the same for every batch of a shape, does once more what
    /// they did before. `body` is called a second time if the first had no effect.
    fn step(
        &mut self,
        _batch: &Batch,
        _rope: &RopeRows,
        _kv: &Self::Kv,
        mut body: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        body(self)
    }

    /// `out[i] = table[tokens[i]]`.
    fn embed(&mut self, table: &Self::Matrix, tokens: &[u32], out: &mut Self::Buffer) -> Result<()>;

    /// `out = x / rms(x) * weight`, of all rows or of those named.
    fn rms_norm(
        &mut self,
        x: &Self::Buffer,
        rows: Option<&[u32]>,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// All projections of the input: `outs[i] = projections[i](x)`.
    fn project(
        &mut self,
        x: &Self::Buffer,
        projections: &Self::Projections,
        outs: &mut [&mut Self::Buffer],
    ) -> Result<()>;

    /// The gated activation: `gate = silu(projections[0](x)) * projections[1](x)`. What `up` holds then is unspecified.
    fn project_gated(
        &mut self,
        x: &Self::Buffer,
        projections: &Self::Projections,
        gate: &mut Self::Buffer,
        up: &mut Self::Buffer,
    ) -> Result<()> {
        self.project(x, projections, &mut [gate, up])?;
        self.silu_mul(gate, up)
    }

    /// `out = head(x)`, to be downloaded.
    fn logits(&mut self, x: &Self::Buffer, head: &Linear<Self>, out: &mut Self::Buffer) -> Result<()>;

    /// `residual += linear(x)`.
    fn linear_add(&mut self, x: &Self::Buffer, linear: &Linear<Self>, residual: &mut Self::Buffer) -> Result<()>;

    /// Normalises each head of q and k where norms are given (Qwen3), rotates them, and stores k and v of
    /// every row in its block.
    #[allow(clippy::too_many_arguments)]
    fn rope_store(
        &mut self,
        q: &mut Self::Buffer,
        k: &mut Self::Buffer,
        v: &Self::Buffer,
        norms: Option<(&Self::Vector, &Self::Vector, f32)>,
        rope: &RopeRows,
        args: &AttentionArgs<'_>,
        kv: &Self::Kv,
    ) -> Result<()>;

    /// Causal attention of every row over its sequence's blocks: `out [rows, heads * head_dim]`.
    fn attention(
        &mut self,
        q: &Self::Buffer,
        args: &AttentionArgs<'_>,
        kv: &Self::Kv,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// `gate = silu(gate) * up`.
    fn silu_mul(&mut self, gate: &mut Self::Buffer, up: &Self::Buffer) -> Result<()>;

    /// DeviceSamplingBatch a token from each of the first rows of logits, in place of their download, and waits until the step is done.
    /// The logits are unspecified then. False if this backend leaves that to the host, and has done nothing.
    fn draw(
        &mut self,
        _logits: &mut Self::Buffer,
        _draws: &DeviceSamplingBatch,
        _out: &mut Vec<DeviceSample>,
    ) -> Result<bool> {
        Ok(false)
    }

    /// Waits until the step is done, and copies the first `rows` rows of a buffer to the host, row-major.
    fn download(&mut self, x: &Self::Buffer, rows: usize, out: &mut Vec<f32>) -> Result<()>;

    /// Waits for all work, and forgets what refers to buffers: they are about to go.
    fn release(&mut self) -> Result<()> {
        Ok(())
    }

    /// That the work runs on; 0 where the device has none.
    fn multiprocessors(&self) -> u32 {
        0
    }

    /// Whether the work goes before that of engines on the same device whose is not urgent. Between two steps.
    fn set_urgent(&mut self, _urgent: bool) -> Result<()> {
        Ok(())
    }

    /// Goes on in other streams, as on other multiprocessors. Between two steps.
    fn set_compute_share(&mut self, _streams: cuda::ComputeShare) -> Result<()> {
        Ok(())
    }
}
