//! A model's weights as one device wants them. Built once per model and device and shared by every engine
//! there: another engine adds no copy. On the CPU matrices stay where the checkpoint is mapped; a CUDA device has those that
//! take the same input as one.

use std::borrow::Cow;

use crate::backend::cpu::{CpuBackend, CpuMatrix, CpuVector};
use crate::backend::cuda::{CudaBackend, CudaMatrix, CudaProjections, CudaVector, Loader};
use crate::backend::{Backend, Linear};
use crate::error::{Error, Result};
use crate::model::checkpoint::{Checkpoint, LayerTensors, LinearTensors, Tensor};
use crate::tensor::Dtype;

/// Brings tensors to a device: the one thing about weights that each backend does its own way.
pub trait Upload<B: Backend> {
    fn matrix(&mut self, tensor: &Tensor) -> Result<B::Matrix>;
    fn vector(&mut self, tensor: &Tensor) -> Result<B::Vector>;
    fn linear(&mut self, tensors: &LinearTensors) -> Result<Linear<B>>;
    /// Projections of the same input.
    fn projections(&mut self, tensors: &[&LinearTensors]) -> Result<B::Projections>;
}

/// One decoder layer.
pub struct LayerWeights<B: Backend> {
    pub attn_norm: B::Vector,
    pub qkv: B::Projections,
    pub o: Linear<B>,
    /// q_norm and k_norm.
    pub qk_norm: Option<(B::Vector, B::Vector)>,
    pub mlp_norm: B::Vector,
    pub gate_up: B::Projections,
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
    pub fn build(checkpoint: &Checkpoint, upload: &mut impl Upload<B>) -> Result<Self> {
        let mut head = |tensor: &Tensor| Ok(Linear { weight: upload.matrix(tensor)?, bias: None });
        Ok(Weights {
            embed: head(&checkpoint.embed)?,
            head: checkpoint.head.as_ref().map(head).transpose()?,
            layers: checkpoint.layers.iter().map(|l| layer(l, upload)).collect::<Result<_>>()?,
            norm: upload.vector(&checkpoint.norm)?,
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

fn layer<B: Backend>(tensors: &LayerTensors, upload: &mut impl Upload<B>) -> Result<LayerWeights<B>> {
    let qk_norm = match &tensors.qk_norm {
        Some((q, k)) => Some((upload.vector(q)?, upload.vector(k)?)),
        None => None,
    };
    Ok(LayerWeights {
        attn_norm: upload.vector(&tensors.attn_norm)?,
        qkv: upload.projections(&[&tensors.q, &tensors.k, &tensors.v])?,
        o: upload.linear(&tensors.o)?,
        qk_norm,
        mlp_norm: upload.vector(&tensors.mlp_norm)?,
        gate_up: upload.projections(&[&tensors.gate, &tensors.up])?,
        down: upload.linear(&tensors.down)?,
    })
}

fn named(tensor: &Tensor) -> impl Fn(Error) -> Error + '_ {
    |error| error.context(format!("{}: tensor {}", tensor.stored.shard.file, tensor.stored.name))
}

/// Host memory: the mapping itself.
pub struct InPlace;

impl Upload<CpuBackend> for InPlace {
    fn matrix(&mut self, tensor: &Tensor) -> Result<CpuMatrix> {
        let (rows, cols) = tensor.rows_cols();
        let (stored, dtype) = (&tensor.stored, tensor.dtype);
        CpuMatrix::new(stored.shard.mapping.clone(), stored.offset, rows, cols, dtype).map_err(named(tensor))
    }

    fn vector(&mut self, tensor: &Tensor) -> Result<CpuVector> {
        CpuVector::new(tensor.bytes(), tensor.dtype)
    }

    fn linear(&mut self, tensors: &LinearTensors) -> Result<Linear<CpuBackend>> {
        let bias = tensors.bias.as_ref().map(|bias| self.vector(bias)).transpose()?;
        Ok(Linear { weight: self.matrix(&tensors.weight)?, bias })
    }

    fn projections(&mut self, tensors: &[&LinearTensors]) -> Result<Vec<Linear<CpuBackend>>> {
        tensors.iter().map(|tensors| self.linear(tensors)).collect()
    }
}

/// A CUDA device: copies of the tensors, matrices all in the one type that the device computes with.
pub struct ToDevice<'a> {
    pub loader: Loader<'a>,
    pub dtype: Dtype,
}

impl Upload<CudaBackend> for ToDevice<'_> {
    fn matrix(&mut self, tensor: &Tensor) -> Result<CudaMatrix> {
        let (rows, cols) = tensor.rows_cols();
        let bytes = converted(tensor, self.dtype)?;
        CudaMatrix::new(&mut self.loader, &bytes, rows, cols, self.dtype).map_err(named(tensor))
    }

    fn vector(&mut self, tensor: &Tensor) -> Result<CudaVector> {
        let values = CpuVector::new(tensor.bytes(), tensor.dtype)?;
        CudaVector::new(&mut self.loader, values.as_slice()).map_err(named(tensor))
    }

    fn linear(&mut self, tensors: &LinearTensors) -> Result<Linear<CudaBackend>> {
        self.stacked(&[tensors])
    }

    fn projections(&mut self, tensors: &[&LinearTensors]) -> Result<CudaProjections> {
        let outputs = tensors.iter().map(|tensors| tensors.weight.rows_cols().0).collect();
        CudaProjections::new(self.stacked(tensors)?, outputs)
    }
}

impl ToDevice<'_> {
    /// What all weights take there, as vectors are f32.
    pub fn bytes(checkpoint: &Checkpoint, dtype: Dtype) -> u64 {
        Self::sum(checkpoint, dtype, 4)
    }

    /// Room for them in any case: a bias may be there in a second type, and for projections that have none.
    pub fn most_bytes(checkpoint: &Checkpoint, dtype: Dtype) -> u64 {
        Self::sum(checkpoint, dtype, 3 * (4 + 2))
    }

    fn sum(checkpoint: &Checkpoint, dtype: Dtype, of_vectors: u64) -> u64 {
        let bytes = |tensor: &&Tensor| {
            let elements = tensor.stored.shape.iter().product::<usize>() as u64;
            elements * if tensor.stored.shape.len() == 2 { dtype.size() as u64 } else { of_vectors }
        };
        checkpoint.tensors().iter().map(bytes).sum()
    }

    /// Projections of one input as one: their matrices below each other, their biases one after the other.
    fn stacked(&mut self, tensors: &[&LinearTensors]) -> Result<Linear<CudaBackend>> {
        let first = &tensors[0].weight;
        let (mut rows, cols) = (0, first.rows_cols().1);
        let mut bias = Vec::new();
        for tensors in tensors {
            let outputs = tensors.weight.rows_cols().0;
            if let Some(tensor) = &tensors.bias {
                bias.resize(rows, 0.0); // those before it had none
                bias.extend_from_slice(CpuVector::new(tensor.bytes(), tensor.dtype)?.as_slice());
            }
            rows += outputs;
        }
        let dtype = self.dtype;
        let parts = tensors.iter().map(|tensors| converted(&tensors.weight, dtype));
        let weight = CudaMatrix::stacked(&mut self.loader, parts, rows, cols, dtype).map_err(named(first))?;
        let bias = match bias.is_empty() {
            true => None,
            false => {
                bias.resize(rows, 0.0);
                Some(CudaVector::bias(&mut self.loader, &bias, dtype).map_err(named(first))?)
            }
        };
        Ok(Linear { weight, bias })
    }
}

/// The tensor's bytes in another element type, rounded to the nearest.
fn converted(tensor: &Tensor, to: Dtype) -> Result<Cow<'_, [u8]>> {
    if tensor.dtype == to {
        return Ok(Cow::Borrowed(tensor.bytes()));
    }
    let values = CpuVector::new(tensor.bytes(), tensor.dtype)?;
    let values = values.as_slice().iter();
    Ok(Cow::Owned(match to {
        Dtype::F16 => values.flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::Bf16 => values.flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::F32 | Dtype::I8 => values.flat_map(|x| x.to_le_bytes()).collect(),
    }))
}
