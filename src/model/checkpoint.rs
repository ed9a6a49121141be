//! The tensors of a model: every tensor that the decoder needs is there, with the shape that its config says.

use std::path::Path;
use std::sync::Arc;

use crate::bail;
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::safetensors::{Shard, StoredTensor};
use crate::model::tensor_files::TensorFiles;
use crate::tensor::Dtype;

/// A tensor the decoder uses: shape and type checked, still where its file is mapped.
#[derive(Clone)]
pub struct Tensor {
    /// Where it is.
    pub stored: StoredTensor,
    /// Element type.
    pub dtype: Dtype,
}

impl Tensor {
    /// Name in the file.
    pub fn name(&self) -> &str {
        &self.stored.name
    }

    /// Name, dtype and shape, as the fingerprint takes them.
    pub fn describe(&self) -> String {
        let shape = self.stored.shape.iter().map(|n| n.to_string()).collect::<Vec<_>>().join("x");
        format!("{} {} {shape}", self.name(), self.dtype)
    }

    /// The elements, row-major and little-endian.
    pub fn bytes(&self) -> &[u8] {
        self.stored.bytes()
    }

    /// `[rows, cols]` of a matrix; a vector is one row.
    pub fn rows_cols(&self) -> (usize, usize) {
        match self.stored.shape.as_slice() {
            [rows, cols] => (*rows, *cols),
            other => (1, other.iter().product()),
        }
    }
}

/// A projection's tensors.
#[derive(Clone)]
pub struct LinearTensors {
    /// Matrix `[outputs, inputs]`.
    pub weight: Tensor,
    /// Bias of the outputs.
    pub bias: Option<Tensor>,
}

/// One decoder layer's tensors.
#[derive(Clone)]
pub struct LayerTensors {
    /// Norm before the attention.
    pub attn_norm: Tensor,
    /// Query projection.
    pub q: LinearTensors,
    /// Key projection.
    pub k: LinearTensors,
    /// Value projection.
    pub v: LinearTensors,
    /// Output projection of the attention.
    pub o: LinearTensors,
    /// Norms of q and k, in architectures that have them.
    pub qk_norm: Option<(Tensor, Tensor)>,
    /// Norm before the MLP.
    pub mlp_norm: Tensor,
    /// Gate projection.
    pub gate: LinearTensors,
    /// Up projection.
    pub up: LinearTensors,
    /// Down projection.
    pub down: LinearTensors,
}

/// All tensors of a model.
pub struct Checkpoint {
    /// Embedding table `[vocab, hidden]`.
    pub embed: Tensor,
    /// Decoder layers, in order.
    pub layers: Vec<LayerTensors>,
    /// Norm before the output projection.
    pub norm: Tensor,
    /// Output projection; None: the embedding table serves as one.
    pub head: Option<Tensor>,
}

impl Checkpoint {
    /// Maps the files of a directory and finds every tensor that `config` asks for, with its shape.
    pub fn open(dir: &Path, config: &ModelConfig) -> Result<Self> {
        let files = &TensorFiles::open(dir)?;
        let layers = (0..config.layers.len()).map(|i| layer(files, config, i)).collect::<Result<_>>()?;
        let (vocab, hidden) = (config.vocab_size as usize, config.hidden_size as usize);
        // A tied config that stores an output projection all the same means it (transformers 5).
        let tied = config.tie_word_embeddings && files.get("lm_head.weight").is_none();
        Ok(Checkpoint {
            embed: need(files, "model.embed_tokens.weight", &[vocab, hidden])?,
            layers,
            norm: need(files, "model.norm.weight", &[hidden])?,
            head: if tied { None } else { Some(need(files, "lm_head.weight", &[vocab, hidden])?) },
        })
    }

    /// Every tensor, in an order that depends on nothing but the architecture.
    pub fn tensors(&self) -> Vec<&Tensor> {
        let mut all = vec![&self.embed];
        for layer in &self.layers {
            all.push(&layer.attn_norm);
            for linear in [&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down] {
                all.push(&linear.weight);
                all.extend(&linear.bias);
            }
            all.extend(layer.qk_norm.iter().flat_map(|(q, k)| [q, k]));
            all.push(&layer.mlp_norm);
        }
        all.push(&self.norm);
        all.extend(&self.head);
        all
    }

    /// The files the decoder's tensors are in.
    pub fn shards(&self) -> Vec<&Arc<Shard>> {
        let mut shards: Vec<&Arc<Shard>> = self.tensors().iter().map(|t| &t.stored.shard).collect();
        shards.sort_by_key(|shard| &shard.file);
        shards.dedup_by_key(|shard| &shard.file);
        shards
    }

    /// Bytes of all weights the decoder uses.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors().iter().map(|t| t.stored.len as u64).sum()
    }
}

fn layer(files: &TensorFiles, config: &ModelConfig, index: usize) -> Result<LayerTensors> {
    let spec = &config.layers[index];
    let (hidden, inter) = (config.hidden_size as usize, config.intermediate_size as usize);
    let dim = config.head_dim as usize;
    let (q, kv) = (config.heads as usize * dim, config.kv_heads as usize * dim);
    let name = |part: &str| format!("model.layers.{index}.{part}");
    let linear = |part: &str, outputs: usize, inputs: usize, bias: bool| -> Result<LinearTensors> {
        let bias_name = name(&format!("{part}.bias"));
        if !bias && let Some(extra) = files.get(&bias_name) {
            bail!(
                Unsupported,
                "{}: tensor {bias_name}: {} with this config has no such bias",
                extra.shard.file,
                config.architecture.name()
            );
        }
        Ok(LinearTensors {
            weight: need(files, &name(&format!("{part}.weight")), &[outputs, inputs])?,
            bias: if bias { Some(need(files, &bias_name, &[outputs])?) } else { None },
        })
    };
    let norm = |part: &str, size: usize| need(files, &name(&format!("{part}.weight")), &[size]);
    Ok(LayerTensors {
        attn_norm: norm("input_layernorm", hidden)?,
        q: linear("self_attn.q_proj", q, hidden, spec.qkv_bias)?,
        k: linear("self_attn.k_proj", kv, hidden, spec.qkv_bias)?,
        v: linear("self_attn.v_proj", kv, hidden, spec.qkv_bias)?,
        o: linear("self_attn.o_proj", hidden, q, spec.o_bias)?,
        qk_norm: match spec.qk_norm {
            true => Some((norm("self_attn.q_norm", dim)?, norm("self_attn.k_norm", dim)?)),
            false => None,
        },
        mlp_norm: norm("post_attention_layernorm", hidden)?,
        gate: linear("mlp.gate_proj", inter, hidden, spec.mlp_bias)?,
        up: linear("mlp.up_proj", inter, hidden, spec.mlp_bias)?,
        down: linear("mlp.down_proj", hidden, inter, spec.mlp_bias)?,
    })
}

fn need(files: &TensorFiles, name: &str, shape: &[usize]) -> Result<Tensor> {
    let (stored, dtype) = files.need(name, shape)?;
    Ok(Tensor { stored, dtype })
}
