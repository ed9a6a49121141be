//! Operations of a decoder step, and the projections they use.

use super::{AttentionArgs, Batch, BlockStore, ComputeShare, DeviceSample, DeviceSamplingBatch, RopeRows};
use crate::error::Result;

/// A projection: `y = x · Wᵀ (+ b)`, W row-major `[outputs, inputs]` as checkpoints store it.
pub struct Linear<B: Backend> {
    /// Weight W, `[outputs, inputs]`.
    pub weight: B::Matrix,
    /// Bias b, `[outputs]`; None for a projection without bias.
    pub bias: Option<B::Vector>,
}

/// Operations of one decoder step on one device. A backend belongs to one engine (threads, streams, scratch);
/// matrices and KV are shared between engines. Buffers are `[rows, cols]` of f32 on the device.
pub trait Backend: Send + Sized + 'static {
    /// Activations. The operation that writes a buffer resizes it; memory is kept for the next step.
    type Buffer: Default + Send;
    /// A weight matrix in the checkpoint's dtype, used in place where its form allows.
    type Matrix: Send + Sync;
    /// A norm weight or bias.
    type Vector: Send + Sync;
    /// Projections of one input, stacked into one product where that is faster.
    type Projections: Send + Sync;
    /// The KV pool.
    type Kv: BlockStore;

    /// Runs the operations of a step, `body`. A backend may record them and repeat the recording for later batches of the same
    /// shape; `body` is called again if the first call had no effect.
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

    /// `out = x / rms(x) * weight`, for all rows or the listed ones.
    fn rms_norm(
        &mut self,
        x: &Self::Buffer,
        rows: Option<&[u32]>,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Computes all projections of an input: `outs[i] = projections[i](x)`.
    fn project(
        &mut self,
        x: &Self::Buffer,
        projections: &Self::Projections,
        outs: &mut [&mut Self::Buffer],
    ) -> Result<()>;

    /// Computes the gated activation `gate = silu(projections[0](x)) * projections[1](x)`. `up` is scratch.
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

    /// `out = linear(x)` in f32: logits to download, or a partial product to combine.
    fn product(&mut self, x: &Self::Buffer, linear: &Linear<Self>, out: &mut Self::Buffer) -> Result<()>;

    /// `residual += linear(x)` in one operation.
    fn linear_add(&mut self, x: &Self::Buffer, linear: &Linear<Self>, residual: &mut Self::Buffer) -> Result<()>;

    /// Number of devices that the inputs of [`Backend::reduce_add`] are spread over.
    fn group_size(&self) -> usize {
        1
    }

    /// Replaces a partial product by its sum over the devices of the group.
    fn combine(&mut self, _partial: &mut Self::Buffer) -> Result<()> {
        Ok(())
    }

    /// `residual += x`, both f32.
    fn add(&mut self, x: &Self::Buffer, residual: &mut Self::Buffer) -> Result<()>;

    /// `residual += linear(x)`, where each device of the group holds some of the inputs. One device does it in one
    /// operation; several multiply, combine their partial products and add the sum. `partial` is scratch.
    fn reduce_add(
        &mut self,
        x: &Self::Buffer,
        linear: &Linear<Self>,
        partial: &mut Self::Buffer,
        residual: &mut Self::Buffer,
    ) -> Result<()> {
        if self.group_size() == 1 {
            return self.linear_add(x, linear, residual);
        }
        self.product(x, linear, partial)?;
        self.combine(partial)?;
        self.add(partial, residual)
    }

    /// Normalises each head of q and k if norms are given (Qwen3), rotates them, and stores k and v of every row in its
    /// block.
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

    /// Samples a token from each row of logits that `draws` names, in place of their download, and waits until the step is
    /// done. These rows of logits are unspecified afterwards, others stay. Returns false, having done nothing, if this
    /// backend leaves sampling to the host.
    fn draw(
        &mut self,
        _logits: &mut Self::Buffer,
        _draws: &DeviceSamplingBatch,
        _out: &mut Vec<DeviceSample>,
    ) -> Result<bool> {
        Ok(false)
    }

    /// Waits until the step is done, and copies these rows of a buffer to the host, one after the other.
    fn download(&mut self, x: &Self::Buffer, rows: &[u32], out: &mut Vec<f32>) -> Result<()>;

    /// Waits for all work and drops whatever refers to buffers, which the caller frees next.
    fn release(&mut self) -> Result<()> {
        Ok(())
    }

    /// Number of multiprocessors this engine may use; 0 on the CPU.
    fn multiprocessors(&self) -> u32 {
        0
    }

    /// Gives this engine's work priority over that of non-urgent engines on the same device. Called between steps.
    fn set_urgent(&mut self, _urgent: bool) -> Result<()> {
        Ok(())
    }

    /// Continues on another share of the device. Called between steps.
    fn set_compute_share(&mut self, _streams: ComputeShare) -> Result<()> {
        Ok(())
    }
}
