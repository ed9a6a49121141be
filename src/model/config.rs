//! config.json of a Hugging Face directory, in the form transformers 4 or 5 writes, as the facts the decoder
//! goes by. Every number is bounded here, so that nothing later can overflow or divide by zero.

use std::path::Path;

use serde_json::Value;

use crate::error::Result;
use crate::model::arch::{Architecture, LayerSpec};
use crate::model::json::{Object, shown};
use crate::model::rope::RopeConfig;
use crate::{bail, error};

/// Largest config.json, generation_config.json or shard index that is read.
pub const CONFIG_LIMIT: usize = 1 << 20;

const LAYERS_MAX: u64 = 1024;
const HIDDEN_MAX: u64 = 1 << 20;
const INTERMEDIATE_MAX: u64 = 1 << 22;
const HEADS_MAX: u64 = 4096;
const HEAD_DIM_MAX: u64 = 512;
const VOCAB_MAX: u64 = 1 << 24;
const POSITIONS_MAX: u64 = 1 << 30;

/// A decoder-only model, resolved: no field means "default" any more.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which decoder this is.
    pub architecture: Architecture,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Width of the MLP.
    pub intermediate_size: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u32,
    /// Elements of a head; even.
    pub head_dim: u32,
    /// Epsilon of all norms.
    pub rms_norm_eps: f32,
    /// The embedding table serves as output projection.
    pub tie_word_embeddings: bool,
    /// Tokens a sequence may have: `max_position_embeddings`, stretched by the rope scaling where that is how
    /// the scaling is meant.
    pub max_context_tokens: u32,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Differences of each layer, in order.
    pub layers: Vec<LayerSpec>,
    /// All ids that end a generation; below `vocab_size`, in the order of the file.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads config.json and generation_config.json of a model directory.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let Some(object) = Object::read(&path, CONFIG_LIMIT)? else {
            bail!(NotFound, "{}: no such file: a model directory has a config.json", path.display());
        };
        let mut config = ModelConfig::from_object(&object)?;
        let generation = Object::read(&dir.join("generation_config.json"), CONFIG_LIMIT)?;
        if let Some(generation) = generation
            && let Some(ids) = eos_ids(&generation)?
        {
            config.eos_token_ids = ids;
        }
        let vocab = config.vocab_size;
        config.eos_token_ids.retain(|id| *id < vocab);
        Ok(config)
    }

    /// Takes the facts from the parsed config.json alone.
    pub fn from_object(config: &Object) -> Result<Self> {
        let place = config.place();
        if let Some(quantization) = config.object("quantization_config")? {
            let method = quantization.str("quant_method")?.unwrap_or("unnamed");
            bail!(
                Unsupported,
                "{place}: quantization_config: method \"{method}\": expected plain f32, f16 or bf16 weights"
            );
        }
        let architecture = Architecture::detect(config)?;
        if let Some(act) = config.str("hidden_act")?
            && !matches!(act, "silu" | "swish")
        {
            bail!(Unsupported, "{place}: hidden_act = \"{act}\": supported is silu");
        }
        let vocab_size = config.required_int("vocab_size", 1, VOCAB_MAX)? as u32;
        let hidden_size = config.required_int("hidden_size", 1, HIDDEN_MAX)? as u32;
        let intermediate_size = config.required_int("intermediate_size", 1, INTERMEDIATE_MAX)? as u32;
        let n_layers = config.required_int("num_hidden_layers", 1, LAYERS_MAX)? as usize;
        let heads = config.required_int("num_attention_heads", 1, HEADS_MAX)? as u32;
        let kv_heads = kv_heads(config, architecture, heads)?;
        let head_dim = head_dim(config, architecture, hidden_size, heads)?;
        let positions = config
            .int("max_position_embeddings", 1, POSITIONS_MAX)?
            .map_or(architecture.default_positions(), |n| n as u32);
        let eps = config.number("rms_norm_eps", "a number above 0, at most 1", |x| x > 0.0 && x <= 1.0)?;
        let rope = RopeConfig::from_object(config, head_dim, positions)?;
        let eos_token_ids = match eos_ids(config)? {
            Some(ids) => ids,
            None if config.has("eos_token_id") => Vec::new(),
            None => architecture.default_eos().into_iter().collect(),
        };
        Ok(ModelConfig {
            architecture,
            vocab_size,
            hidden_size,
            intermediate_size,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: eps.unwrap_or(1e-6) as f32,
            tie_word_embeddings: config.bool("tie_word_embeddings", false)?,
            max_context_tokens: rope.max_context_tokens(),
            rope,
            layers: architecture.layers(config, n_layers)?,
            eos_token_ids,
        })
    }

    /// The facts that decide what the weights compute, as text: what the fingerprint is taken over. Stopping
    /// (EOS) and the context limit are not among them.
    pub fn canonical(&self) -> String {
        let mut text = format!(
            "vocab {} hidden {} intermediate {} heads {} kv_heads {} head_dim {} eps {:08x} tied {}\n",
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.rms_norm_eps.to_bits(),
            self.tie_word_embeddings
        );
        text += &self.rope.canonical();
        for spec in &self.layers {
            let window = spec.window.unwrap_or(0);
            let LayerSpec { qkv_bias, o_bias, mlp_bias, qk_norm, .. } = spec;
            text += &format!("layer window {window} bias {qkv_bias} {o_bias} {mlp_bias} qk_norm {qk_norm}\n");
        }
        text
    }
}

fn kv_heads(config: &Object, architecture: Architecture, heads: u32) -> Result<u32> {
    let kv_heads = match config.int("num_key_value_heads", 1, HEADS_MAX)? {
        Some(n) => n as u32,
        None if config.has("num_key_value_heads") => heads,
        None => architecture.default_kv_heads().unwrap_or(heads),
    };
    if !heads.is_multiple_of(kv_heads) {
        bail!(
            Corrupt,
            "{}: num_attention_heads = {heads}: expected a multiple of num_key_value_heads = {kv_heads}",
            config.place()
        );
    }
    Ok(kv_heads)
}

fn head_dim(config: &Object, architecture: Architecture, hidden: u32, heads: u32) -> Result<u32> {
    let place = config.place();
    let (dim, origin) = match (config.int("head_dim", 1, HEAD_DIM_MAX)?, architecture.default_head_dim()) {
        (Some(dim), _) => (dim as u32, "head_dim"),
        (None, Some(dim)) => (dim, "head_dim"),
        (None, None) if !hidden.is_multiple_of(heads) => {
            bail!(Corrupt, "{place}: hidden_size = {hidden}: expected a multiple of num_attention_heads = {heads}")
        }
        (None, None) => (hidden / heads, "hidden_size / num_attention_heads"),
    };
    if !dim.is_multiple_of(2) || u64::from(dim) > HEAD_DIM_MAX {
        bail!(Corrupt, "{place}: {origin} = {dim}: expected an even number from 2 to {HEAD_DIM_MAX}");
    }
    Ok(dim)
}

/// `eos_token_id`: an id or a list of ids. None: the key is absent or null.
fn eos_ids(object: &Object) -> Result<Option<Vec<u32>>> {
    const EXPECTED: &str = "a token id or a list of token ids";
    let id = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    match object.get("eos_token_id") {
        None => Ok(None),
        Some(Value::Array(list)) => {
            let ids = list.iter().map(id).collect::<Option<Vec<u32>>>();
            let mut ids = ids.ok_or_else(|| object.wrong("eos_token_id", EXPECTED))?;
            let mut seen = std::collections::HashSet::new();
            ids.retain(|id| seen.insert(*id));
            Ok(Some(ids))
        }
        Some(value) => match id(value) {
            Some(id) => Ok(Some(vec![id])),
            None => Err(error!(Corrupt, "{}: eos_token_id = {}: expected {EXPECTED}", object.place(), shown(value))),
        },
    }
}
