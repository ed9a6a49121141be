//! The tensors of a model directory: which files they are in, and that every tensor the decoder needs is there
//! with the shape its config says.

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path};
use std::sync::Arc;

use crate::error::Result;
use crate::model::config::{CONFIG_LIMIT, ModelConfig};
use crate::model::json::Object;
use crate::model::safetensors::{self, Shard, Stored, StoredTensor};
use crate::tensor::Dtype;
use crate::{bail, error};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// An index names every tensor: some megabytes for the largest models.
const INDEX_LIMIT: usize = 32 * CONFIG_LIMIT;
const SHARDS_MAX: usize = 1024;

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
        let files = Files::open(dir)?;
        let layers = (0..config.layers.len()).map(|i| layer(&files, config, i)).collect::<Result<_>>()?;
        let (vocab, hidden) = (config.vocab_size as usize, config.hidden_size as usize);
        // A tied config that stores an output projection all the same means it (transformers 5).
        let tied = config.tie_word_embeddings && !files.tensors.contains_key("lm_head.weight");
        Ok(Checkpoint {
            embed: files.need("model.embed_tokens.weight", &[vocab, hidden])?,
            layers,
            norm: files.need("model.norm.weight", &[hidden])?,
            head: if tied { None } else { Some(files.need("lm_head.weight", &[vocab, hidden])?) },
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

fn layer(files: &Files, config: &ModelConfig, index: usize) -> Result<LayerTensors> {
    let spec = &config.layers[index];
    let (hidden, inter) = (config.hidden_size as usize, config.intermediate_size as usize);
    let dim = config.head_dim as usize;
    let (q, kv) = (config.heads as usize * dim, config.kv_heads as usize * dim);
    let name = |part: &str| format!("model.layers.{index}.{part}");
    let linear = |part: &str, outputs: usize, inputs: usize, bias: bool| -> Result<LinearTensors> {
        let bias_name = name(&format!("{part}.bias"));
        if !bias && let Some(extra) = files.tensors.get(&bias_name) {
            bail!(
                Unsupported,
                "{}: tensor {bias_name}: {} with this config has no such bias",
                extra.shard.file,
                config.architecture.name()
            );
        }
        Ok(LinearTensors {
            weight: files.need(&name(&format!("{part}.weight")), &[outputs, inputs])?,
            bias: if bias { Some(files.need(&bias_name, &[outputs])?) } else { None },
        })
    };
    let norm = |part: &str, size: usize| files.need(&name(&format!("{part}.weight")), &[size]);
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

/// All tensors of all shards by name.
struct Files {
    /// The file that should have a missing tensor.
    place: String,
    tensors: HashMap<String, StoredTensor>,
}

impl Files {
    fn open(dir: &Path) -> Result<Self> {
        // As in transformers, a whole file goes before an index.
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if single.exists() {
            let tensors = safetensors::open(&single)?.into_iter().map(|t| (t.name.clone(), t)).collect();
            return Ok(Files { place: single.display().to_string(), tensors });
        }
        if !index.exists() {
            bail!(NotFound, "{}: neither {SINGLE} nor {INDEX} is there", dir.display());
        }
        let place = index.display().to_string();
        let object = Object::read(&index, INDEX_LIMIT)?.ok_or_else(|| error!(NotFound, "{place}: no such file"))?;
        let map = object.object("weight_map")?.ok_or_else(|| object.wrong("weight_map", "an object"))?;
        let mut shards = BTreeSet::new();
        for tensor in map.map().keys() {
            let shard = map.str(tensor)?.ok_or_else(|| map.wrong(tensor, "a file name"))?;
            if !is_plain_name(shard) {
                bail!(Corrupt, "{}: {tensor} = \"{shard}\": expected the name of a file in the directory", map.place());
            }
            shards.insert(shard);
        }
        if shards.is_empty() || shards.len() > SHARDS_MAX {
            bail!(Corrupt, "{place}: weight_map names {} files: expected 1 to {SHARDS_MAX}", shards.len());
        }
        let mut tensors: HashMap<String, StoredTensor> = HashMap::new();
        for shard in shards {
            for tensor in
                safetensors::open(&dir.join(shard)).map_err(|e| e.context(format!("{INDEX} names a shard")))?
            {
                if let Some(other) = tensors.get(&tensor.name) {
                    bail!(Corrupt, "{}: tensor {}: also in {}", tensor.shard.file, tensor.name, other.shard.file);
                }
                tensors.insert(tensor.name.clone(), tensor);
            }
        }
        for (name, shard) in map.map() {
            let found = tensors.get(name).and_then(|t| Path::new(&t.shard.file).file_name()?.to_str());
            if found != shard.as_str() {
                bail!(Corrupt, "{place}: weight_map: {name}: not in the file {shard}");
            }
        }
        Ok(Files { place, tensors })
    }

    fn need(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let Some(stored) = self.tensors.get(name) else {
            bail!(Corrupt, "{}: tensor {name} is missing: expected shape {shape:?}", self.place);
        };
        let file = &stored.shard.file;
        let dtype = match stored.stored {
            Stored::Float(dtype) => dtype,
            Stored::Other(other, _) => {
                bail!(Unsupported, "{file}: tensor {name}: dtype {other}: supported are F32, F16 and BF16")
            }
        };
        if stored.shape != shape {
            bail!(Corrupt, "{file}: tensor {name}: shape {:?}: expected {shape:?} from config.json", stored.shape);
        }
        Ok(Tensor { stored: stored.clone(), dtype })
    }
}

/// Whether `name` is the plain name of a file: no directory part, no way out of the directory.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains(['\\', '\0'])
}
