//! A model's weights as one device wants them. Built once per model and device and shared by every engine
//! there: another engine adds no copy. On the CPU matrices stay where the checkpoint is mapped.

use crate::backend::cpu::{CpuBackend, CpuMatrix, CpuVector};
use crate::backend::{Backend, Linear};
use crate::error::Result;
use crate::model::checkpoint::{Checkpoint, LayerTensors, LinearTensors, Tensor};

/// Brings tensors to a device: the one thing about weights that each backend does its own way.
pub trait Upload<B: Backend> {
    fn matrix(&self, tensor: &Tensor) -> Result<B::Matrix>;
    fn vector(&self, tensor: &Tensor) -> Result<B::Vector>;
}

/// One decoder layer.
pub struct LayerWeights<B: Backend> {
    pub attn_norm: B::Vector,
    pub q: Linear<B>,
    pub k: Linear<B>,
    pub v: Linear<B>,
    pub o: Linear<B>,
    /// q_norm and k_norm.
    pub qk_norm: Option<(B::Vector, B::Vector)>,
    pub mlp_norm: B::Vector,
    pub gate: Linear<B>,
    pub up: Linear<B>,
    pub down: Linear<B>,
}

/// All weights of a model on one device.
pub struct Weights<B: Backend> {
    embed: Linear<B>,
    pub layers: Vec<LayerWeights<B>>,
    pub norm: B::Vector,
    head: Option<Linear<B>>,
}

impl<B: Backend> Weights<B> {
    pub fn build(checkpoint: &Checkpoint, upload: &impl Upload<B>) -> Result<Self> {
        let head = |tensor: &Tensor| Ok(Linear { weight: upload.matrix(tensor)?, bias: None });
        Ok(Weights {
            embed: head(&checkpoint.embed)?,
            layers: checkpoint.layers.iter().map(|l| layer(l, upload)).collect::<Result<_>>()?,
            norm: upload.vector(&checkpoint.norm)?,
            head: checkpoint.head.as_ref().map(head).transpose()?,
        })
    }

    /// The embedding table.
    pub fn embed(&self) -> &B::Matrix {
        &self.embed.weight
    }

    /// The output projection: the embedding's own matrix in tied models.
    pub fn head(&self) -> &Linear<B> {
        self.head.as_ref().unwrap_or(&self.embed)
    }
}

fn layer<B: Backend>(tensors: &LayerTensors, upload: &impl Upload<B>) -> Result<LayerWeights<B>> {
    let linear = |t: &LinearTensors| -> Result<Linear<B>> {
        let bias = t.bias.as_ref().map(|bias| upload.vector(bias)).transpose()?;
        Ok(Linear { weight: upload.matrix(&t.weight)?, bias })
    };
    let qk_norm = match &tensors.qk_norm {
        Some((q, k)) => Some((upload.vector(q)?, upload.vector(k)?)),
        None => None,
    };
    Ok(LayerWeights {
        attn_norm: upload.vector(&tensors.attn_norm)?,
        q: linear(&tensors.q)?,
        k: linear(&tensors.k)?,
        v: linear(&tensors.v)?,
        o: linear(&tensors.o)?,
        qk_norm,
        mlp_norm: upload.vector(&tensors.mlp_norm)?,
        gate: linear(&tensors.gate)?,
        up: linear(&tensors.up)?,
        down: linear(&tensors.down)?,
    })
}

/// Host memory: the mapping itself.
pub struct InPlace;

impl Upload<CpuBackend> for InPlace {
    fn matrix(&self, tensor: &Tensor) -> Result<CpuMatrix> {
        let (rows, cols) = tensor.rows_cols();
        let (stored, dtype) = (&tensor.stored, tensor.dtype);
        CpuMatrix::new(stored.shard.mapping.clone(), stored.offset, rows, cols, dtype)
            .map_err(|e| e.context(format!("{}: tensor {}", stored.shard.file, stored.name)))
    }

    fn vector(&self, tensor: &Tensor) -> Result<CpuVector> {
        CpuVector::new(tensor.bytes(), tensor.dtype)
    }
}
