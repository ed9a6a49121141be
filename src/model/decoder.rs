//! One step of a decoder-only model over any backend.

use std::sync::Arc;

use crate::backend::{
    AttentionArgs, Backend, Batch, BlockStore, ComputeShare, DeviceSample, DeviceSamplingBatch, KvGeometry, RopeRows,
};
use crate::bail;
use crate::error::Result;
use crate::model::Model;
use crate::model::rope::Rope;
use crate::model::weights::{LayerWeights, Weights};

/// A step that was launched and not collected yet.
#[derive(Debug)]
#[must_use = "a step that was launched has to be collected"]
pub struct LaunchTicket(u64);

/// Runs batches: what an engine sees of a model on a device. A step has two halves. With the present backends the second has
/// to follow the first before another step is launched; one that computes ahead would take a launch while tickets are out.
pub trait Executor: Send {
    /// Starts a step: K and V of all rows of the batch are stored, and the logits of `batch.logit_rows` computed. After an error
    /// the KV of the batch's rows is unspecified.
    fn launch(&mut self, batch: &Batch) -> Result<LaunchTicket>;

    /// Samples on the device from rows of the logits of a launched step, and waits for the tokens; those rows can no longer be
    /// downloaded. False if the device does not sample. Row 0 is the first of `logit_rows`.
    fn collect_samples(
        &mut self,
        step: &LaunchTicket,
        draws: &DeviceSamplingBatch,
        out: &mut Vec<DeviceSample>,
    ) -> Result<bool>;

    /// Waits for a launched step, and downloads rows of its logits, `[rows.len(), vocab]`; none is fine.
    fn collect_logits(&mut self, step: &LaunchTicket, rows: &[u32], out: &mut Vec<f32>) -> Result<()>;

    /// Number of logits in a row: tokens of the model's vocabulary, padding included.
    fn vocab_size(&self) -> usize;

    /// Frees the scratch memory of the steps so far; the next step allocates it again. After `launch` ran out of memory, this
    /// restores the state from before the step.
    fn release(&mut self) -> Result<()>;

    /// Number of multiprocessors this engine may use; 0 on the CPU.
    fn multiprocessors(&self) -> u32;

    /// Gives this engine's kernels priority over those of non-urgent engines on the same device. Call between steps.
    fn set_urgent(&mut self, urgent: bool) -> Result<()>;

    /// Continues on another share of the device. Call between steps.
    fn set_compute_share(&mut self, streams: ComputeShare) -> Result<()>;
}

/// A model's step on one device. Belongs to one engine; weights and KV are shared.
pub struct Decoder<B: Backend> {
    model: Arc<Model>,
    weights: Arc<Weights<B>>,
    kv: Arc<B::Kv>,
    backend: B,
    rope: Rope,
    rope_rows: RopeRows,
    scale: f32,
    buffers: Buffers<B>,
    /// Steps launched so far: only the last can be collected, its logits are in the one buffer.
    launched: u64,
}

/// Activations, kept from step to step.
struct Buffers<B: Backend> {
    /// The residual stream.
    x: B::Buffer,
    /// Normalised input of a sublayer or of the head; then scratch for a partial product.
    normed: B::Buffer,
    q: B::Buffer,
    k: B::Buffer,
    v: B::Buffer,
    attended: B::Buffer,
    gate: B::Buffer,
    up: B::Buffer,
    logits: B::Buffer,
}

impl<B: Backend> Default for Buffers<B> {
    fn default() -> Self {
        Buffers {
            x: B::Buffer::default(),
            normed: B::Buffer::default(),
            q: B::Buffer::default(),
            k: B::Buffer::default(),
            v: B::Buffer::default(),
            attended: B::Buffer::default(),
            gate: B::Buffer::default(),
            up: B::Buffer::default(),
            logits: B::Buffer::default(),
        }
    }
}

impl<B: Backend> Decoder<B> {
    /// INCOMPATIBLE when the KV pool is not of this model's shape.
    pub fn new(model: Arc<Model>, weights: Arc<Weights<B>>, backend: B, kv: Arc<B::Kv>) -> Result<Self> {
        let found = *kv.geometry();
        let (block_tokens, shards) = (found.block_tokens, found.shards);
        let expected = KvGeometry { shards, ..model.kv_geometry(block_tokens, found.dtype) };
        if found != expected {
            bail!(Incompatible, "KV pool of {found:?}: the model needs {expected:?}");
        }
        let config = model.config();
        Ok(Decoder {
            rope: Rope::new(&config.rope),
            scale: f64::from(config.head_dim).powf(-0.5) as f32,
            model,
            weights,
            kv,
            backend,
            rope_rows: RopeRows::default(),
            buffers: Buffers::default(),
            launched: 0,
        })
    }

    fn check(&self, batch: &Batch) -> Result<()> {
        let rows = batch.tokens.len();
        let vocab = self.model.config().vocab_size;
        if let Some(token) = batch.tokens.iter().find(|token| **token >= vocab) {
            bail!(InvalidArgument, "token {token}: expected less than the vocabulary's {vocab}");
        }
        if batch.positions.len() != rows || batch.rope_lens.len() != rows {
            bail!(
                Internal,
                "batch of {rows} tokens has {} positions and {} rope lengths",
                batch.positions.len(),
                batch.rope_lens.len()
            );
        }
        if let Some(row) = batch.logit_rows.iter().find(|row| **row as usize >= rows) {
            bail!(Internal, "logits of row {row} wanted from a batch of {rows}");
        }
        Ok(())
    }
}

impl<B: Backend> Decoder<B> {
    fn check_last(&self, step: &LaunchTicket) -> Result<()> {
        if step.0 != self.launched {
            bail!(Internal, "step {} is collected after step {} was launched", step.0, self.launched);
        }
        Ok(())
    }
}

/// The operations of one step.
struct Forward<'a, B: Backend> {
    model: &'a Model,
    weights: &'a Weights<B>,
    kv: &'a B::Kv,
    rope: &'a RopeRows,
    scale: f32,
    batch: &'a Batch,
}

impl<B: Backend> Forward<'_, B> {
    /// K and V of all rows into the cache, and the logits of those that are wanted.
    fn run(&self, backend: &mut B, b: &mut Buffers<B>) -> Result<()> {
        backend.embed(self.weights.embed(), &self.batch.tokens, &mut b.x)?;
        // A chunk in the middle of a prompt wants no logits: nobody reads what its last layer puts out.
        let no_logits = self.batch.logit_rows.is_empty();
        let layers = self.weights.layers.len();
        for index in 0..layers {
            self.layer(index, backend, b, no_logits && index + 1 == layers)?;
        }
        if no_logits {
            return Ok(());
        }
        let eps = self.model.config().rms_norm_eps;
        backend.rms_norm(&b.x, Some(&self.batch.logit_rows), &self.weights.norm, eps, &mut b.normed)?;
        backend.product(&b.normed, self.weights.head(), &mut b.logits)
    }

    /// K and V of all rows into the cache; then, unless `kv_only`, the layer's change to the residual stream.
    fn layer(&self, index: usize, backend: &mut B, b: &mut Buffers<B>, kv_only: bool) -> Result<()> {
        let config = self.model.config();
        let (spec, eps) = (&config.layers[index], config.rms_norm_eps);
        let layer: &LayerWeights<B> = &self.weights.layers[index];
        let heads = config.heads as usize;
        let args = AttentionArgs { layer: index, heads, scale: self.scale, window: spec.window, batch: self.batch };

        backend.rms_norm(&b.x, None, &layer.attn_norm, eps, &mut b.normed)?;
        backend.project(&b.normed, &layer.qkv, &mut [&mut b.q, &mut b.k, &mut b.v])?;
        let norms = layer.qk_norm.as_ref().map(|(q, k)| (q, k, eps));
        backend.rope_store(&mut b.q, &mut b.k, &b.v, norms, self.rope, &args, self.kv)?;
        if kv_only {
            return Ok(());
        }
        backend.attention(&b.q, &args, self.kv, &mut b.attended)?;
        backend.reduce_add(&b.attended, &layer.o, &mut b.normed, &mut b.x)?;

        backend.rms_norm(&b.x, None, &layer.mlp_norm, eps, &mut b.normed)?;
        backend.project_gated(&b.normed, &layer.gate_up, &mut b.gate, &mut b.up)?;
        backend.reduce_add(&b.gate, &layer.down, &mut b.normed, &mut b.x)
    }
}

impl<B: Backend> Executor for Decoder<B> {
    fn launch(&mut self, batch: &Batch) -> Result<LaunchTicket> {
        self.check(batch)?;
        self.launched += 1;
        let ticket = LaunchTicket(self.launched);
        if batch.tokens.is_empty() {
            return Ok(ticket);
        }
        self.rope.rows(batch, &mut self.rope_rows)?;
        let Decoder { model, weights, kv, backend, rope_rows, buffers, scale, .. } = self;
        let forward = Forward { model, weights, kv, rope: rope_rows, scale: *scale, batch };
        backend.step(batch, rope_rows, kv, |backend| forward.run(backend, buffers))?;
        Ok(ticket)
    }

    fn collect_samples(
        &mut self,
        step: &LaunchTicket,
        draws: &DeviceSamplingBatch,
        out: &mut Vec<DeviceSample>,
    ) -> Result<bool> {
        self.check_last(step)?;
        self.backend.draw(&mut self.buffers.logits, draws, out)
    }

    fn collect_logits(&mut self, step: &LaunchTicket, rows: &[u32], out: &mut Vec<f32>) -> Result<()> {
        self.check_last(step)?;
        self.backend.download(&self.buffers.logits, rows, out)
    }

    fn vocab_size(&self) -> usize {
        self.model.config().vocab_size as usize
    }

    fn release(&mut self) -> Result<()> {
        // The backend first: it waits for the work that uses them.
        self.backend.release()?;
        self.buffers = Buffers::default();
        Ok(())
    }

    fn multiprocessors(&self) -> u32 {
        self.backend.multiprocessors()
    }

    fn set_urgent(&mut self, urgent: bool) -> Result<()> {
        self.backend.set_urgent(urgent)
    }

    fn set_compute_share(&mut self, streams: ComputeShare) -> Result<()> {
        self.backend.set_compute_share(streams)
    }
}
