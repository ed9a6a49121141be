//! A model's weights as one device has them. Placed once per model and device and shared by every engine there: another
//! engine adds no copy.

use crate::backend::{Backend, Linear, LinearSource, MatrixSource, TensorSource, WeightLoader};
use crate::error::Result;
use crate::model::checkpoint::{Checkpoint, LayerTensors, LinearTensors, Tensor};

/// One decoder layer.
pub struct LayerWeights<B: Backend> {
    /// Norm before the attention.
    pub attn_norm: B::Vector,
    /// Query, key and value projections.
    pub qkv: B::Projections,
    /// Output projection of the attention.
    pub o: Linear<B>,
    /// Norms of q and k, in architectures that have them.
    pub qk_norm: Option<(B::Vector, B::Vector)>,
    /// Norm before the MLP.
    pub mlp_norm: B::Vector,
    /// Gate and up projections.
    pub gate_up: B::Projections,
    /// Down projection.
    pub down: Linear<B>,
}

/// All weights of a model on one device.
pub struct Weights<B: Backend> {
    embed: Linear<B>,
    /// Decoder layers, in order.
    pub layers: Vec<LayerWeights<B>>,
    /// Norm before the output projection.
    pub norm: B::Vector,
    head: Option<Linear<B>>,
}

impl<B: Backend> Weights<B> {
    /// Places all tensors of the checkpoint with the device's loader.
    pub fn build(checkpoint: &Checkpoint, loader: &mut dyn WeightLoader<B>) -> Result<Self> {
        let mut head = |tensor: &Tensor| Ok(Linear { weight: loader.matrix(&matrix(tensor))?, bias: None });
        Ok(Weights {
            embed: head(&checkpoint.embed)?,
            head: checkpoint.head.as_ref().map(head).transpose()?,
            layers: checkpoint.layers.iter().map(|l| layer(l, loader)).collect::<Result<_>>()?,
            norm: loader.vector(&source(&checkpoint.norm))?,
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

fn layer<B: Backend>(tensors: &LayerTensors, loader: &mut dyn WeightLoader<B>) -> Result<LayerWeights<B>> {
    let qk_norm = match &tensors.qk_norm {
        Some((q, k)) => Some((loader.vector(&source(q))?, loader.vector(&source(k))?)),
        None => None,
    };
    Ok(LayerWeights {
        attn_norm: loader.vector(&source(&tensors.attn_norm))?,
        qkv: loader.projections(&[linear(&tensors.q), linear(&tensors.k), linear(&tensors.v)])?,
        o: loader.linear(&linear(&tensors.o))?,
        qk_norm,
        mlp_norm: loader.vector(&source(&tensors.mlp_norm))?,
        gate_up: loader.projections(&[linear(&tensors.gate), linear(&tensors.up)])?,
        down: loader.linear(&linear(&tensors.down))?,
    })
}

fn source(tensor: &Tensor) -> TensorSource<'_> {
    let stored = &tensor.stored;
    let (rows, cols) = tensor.rows_cols();
    TensorSource {
        file: &stored.shard.file,
        name: &stored.name,
        owner: stored.shard.mapping.clone(),
        offset: stored.offset,
        len: stored.len,
        dtype: tensor.dtype,
        rows,
        cols,
    }
}

fn matrix(tensor: &Tensor) -> MatrixSource<'_> {
    MatrixSource::plain(source(tensor))
}

fn linear(tensors: &LinearTensors) -> LinearSource<'_> {
    LinearSource { weight: matrix(&tensors.weight), bias: tensors.bias.as_ref().map(source) }
}
