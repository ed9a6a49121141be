//! The supported architectures: one decoder layer, configured. A new one that fits [`LayerSpec`] is a variant
//! here and its rules in [`Architecture::layers`].

use crate::bail;
use crate::error::Result;
use crate::model::json::Object;

/// One decoder layer's differences from the plain pre-norm, gated-SiLU layer with grouped-query attention that all
/// supported architectures share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerSpec {
    /// Sliding window of the attention; None: all positions.
    pub window: Option<u32>,
    /// The q, k and v projections have biases.
    pub qkv_bias: bool,
    /// The output projection of the attention has a bias.
    pub o_bias: bool,
    /// The projections of the MLP have biases.
    pub mlp_bias: bool,
    /// RMS norm of each head of q and k before rotation (Qwen3).
    pub qk_norm: bool,
}

/// A supported architecture, named after its `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
}

const ALL: [Architecture; 4] = [Architecture::Llama, Architecture::Mistral, Architecture::Qwen2, Architecture::Qwen3];

const WINDOW_MAX: u64 = 1 << 30;

impl Architecture {
    /// The class name, as `architectures` in config.json has it.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Mistral => "MistralForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    fn model_type(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Mistral => "mistral",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
        }
    }

    /// Finds the architecture by `architectures[0]`, or by `model_type` where that is missing; the two must agree.
    pub fn detect(config: &Object) -> Result<Self> {
        let supported = ALL.map(Architecture::name).join(", ");
        let named = config.strings("architectures")?.unwrap_or_default().first().copied();
        let kind = config.str("model_type")?;
        let place = config.place();
        let found = match (named, kind) {
            (Some(name), _) => match ALL.iter().find(|a| a.name() == name) {
                Some(found) => *found,
                None => bail!(Unsupported, "{place}: architectures = \"{name}\": supported are {supported}"),
            },
            (None, Some(kind)) => match ALL.iter().find(|a| a.model_type() == kind) {
                Some(found) => *found,
                None => bail!(Unsupported, "{place}: model_type = \"{kind}\": supported are {supported}"),
            },
            (None, None) => bail!(Corrupt, "{place}: neither architectures nor model_type is there"),
        };
        if let Some(kind) = kind
            && kind != found.model_type()
        {
            bail!(
                Unsupported,
                "{place}: model_type = \"{kind}\" does not belong to architectures = \"{}\"",
                found.name()
            );
        }
        Ok(found)
    }

    /// `num_key_value_heads` where config.json has no such key (an explicit null means as many as heads).
    pub fn default_kv_heads(self) -> Option<u32> {
        match self {
            Architecture::Llama => None,
            Architecture::Mistral => Some(8),
            Architecture::Qwen2 | Architecture::Qwen3 => Some(32),
        }
    }

    /// `head_dim` where config.json has none; None: hidden_size / num_attention_heads.
    pub fn default_head_dim(self) -> Option<u32> {
        (self == Architecture::Qwen3).then_some(128)
    }

    /// `max_position_embeddings` where config.json has none.
    pub fn default_positions(self) -> u32 {
        match self {
            Architecture::Llama => 2048,
            Architecture::Mistral => 131072,
            Architecture::Qwen2 | Architecture::Qwen3 => 32768,
        }
    }

    /// The end-of-sequence id where neither generation_config.json nor config.json says anything.
    pub fn default_eos(self) -> Option<u32> {
        matches!(self, Architecture::Llama | Architecture::Mistral).then_some(2)
    }

    /// One spec per layer, as transformers' model of that name reads its config.
    pub fn layers(self, config: &Object, n: usize) -> Result<Vec<LayerSpec>> {
        let attention_bias = config.bool("attention_bias", false)?;
        let spec = match self {
            Architecture::Llama => LayerSpec {
                qkv_bias: attention_bias,
                o_bias: attention_bias,
                mlp_bias: config.bool("mlp_bias", false)?,
                ..LayerSpec::default()
            },
            Architecture::Mistral => LayerSpec::default(),
            Architecture::Qwen2 => LayerSpec { qkv_bias: true, ..LayerSpec::default() },
            Architecture::Qwen3 => {
                LayerSpec { qkv_bias: attention_bias, o_bias: attention_bias, qk_norm: true, ..LayerSpec::default() }
            }
        };
        let windows = match self {
            Architecture::Llama => uniform_windows(config, None, n)?,
            Architecture::Mistral => {
                let default = if config.has("sliding_window") { None } else { Some(4096) };
                let window = config.int("sliding_window", 1, WINDOW_MAX)?.map(|w| w as u32).or(default);
                uniform_windows(config, window, n)?
            }
            Architecture::Qwen2 | Architecture::Qwen3 => qwen_windows(config, n)?,
        };
        Ok(windows.into_iter().map(|window| LayerSpec { window, ..spec }).collect())
    }
}

fn layer_types(config: &Object, n: usize) -> Result<Option<Vec<bool>>> {
    let Some(types) = config.strings("layer_types")? else { return Ok(None) };
    if types.len() != n {
        bail!(Corrupt, "{}: layer_types has {} entries: expected {n}, one per layer", config.place(), types.len());
    }
    let sliding = types.iter().map(|kind| match *kind {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => bail!(Unsupported, "{}: layer_types has \"{other}\"", config.place()),
    });
    sliding.collect::<Result<_>>().map(Some)
}

/// For architectures whose layers are all alike. transformers' classes ignore `layer_types` here; weights that
/// were trained with another pattern would run wrongly, so one that disagrees is refused.
fn uniform_windows(config: &Object, window: Option<u32>, n: usize) -> Result<Vec<Option<u32>>> {
    if let Some(sliding) = layer_types(config, n)?
        && sliding.iter().any(|s| *s != window.is_some())
    {
        bail!(Unsupported, "{}: layer_types: this architecture's layers are all alike", config.place());
    }
    Ok(vec![window; n])
}

fn qwen_windows(config: &Object, n: usize) -> Result<Vec<Option<u32>>> {
    let window = if config.bool("use_sliding_window", false)? {
        let default = if config.has("sliding_window") { None } else { Some(4096) };
        config.int("sliding_window", 1, WINDOW_MAX)?.map(|w| w as u32).or(default)
    } else {
        None
    };
    let full_layers = match config.int("max_window_layers", 0, WINDOW_MAX)? {
        Some(layers) => layers as usize,
        None => 28,
    };
    match layer_types(config, n)? {
        None => Ok((0..n).map(|i| if i >= full_layers { window } else { None }).collect()),
        Some(sliding) => {
            if window.is_none() && sliding.contains(&true) {
                bail!(
                    Corrupt,
                    "{}: layer_types has \"sliding_attention\": expected use_sliding_window and sliding_window with it",
                    config.place()
                );
            }
            Ok(sliding.into_iter().map(|s| if s { window } else { None }).collect())
        }
    }
}
