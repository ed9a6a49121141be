//! Models as a planner sees them: how many weights a token meets, and how much KV it leaves.

use crate::hardware::WeightFormat;
use std::path::Path;

/// Experts of a mixture-of-experts model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// Experts in each layer.
    pub count: usize,
    /// Experts that a token uses in each layer.
    pub used: usize,
}

/// A decoder-only model.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Name on the command line.
    pub name: String,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Width of the gated MLP, or of one expert.
    pub ffn: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Experts, if the model has them.
    pub experts: Option<Experts>,
    /// Format of the weights of the layers. Embeddings and the output projection are in bf16.
    pub weights: WeightFormat,
    /// Sliding window in tokens, which every second layer has.
    pub window: Option<usize>,
    /// Bytes of an element of KV.
    pub kv_bytes: f64,
}

impl Model {
    /// Weights of attention in one layer.
    fn attention_weights(&self) -> f64 {
        let (q, kv) = ((self.heads * self.head_dim) as f64, (self.kv_heads * self.head_dim) as f64);
        self.hidden as f64 * (2.0 * q + 2.0 * kv)
    }

    /// Weights of one MLP or expert.
    fn mlp_weights(&self) -> f64 {
        3.0 * self.hidden as f64 * self.ffn as f64
    }

    /// Weights of the layers that every token meets, and those of all experts.
    pub fn layer_weights(&self) -> (f64, f64) {
        let layers = self.layers as f64;
        match self.experts {
            None => (layers * (self.attention_weights() + self.mlp_weights()), 0.0),
            Some(experts) => (layers * self.attention_weights(), layers * self.mlp_weights() * experts.count as f64),
        }
    }

    /// Share of the experts that one token uses; 0 in a dense model.
    pub fn expert_share(&self) -> f64 {
        self.experts.map_or(0.0, |experts| experts.used as f64 / experts.count as f64)
    }

    /// Weights of the output projection.
    pub fn head_weights(&self) -> f64 {
        self.hidden as f64 * self.vocab as f64
    }

    /// Bytes of all weights.
    pub fn weight_bytes(&self) -> f64 {
        let (common, experts) = self.layer_weights();
        // Mixtures in 4 bits keep attention in bf16, as gpt-oss does.
        let common_bytes = if self.experts.is_some() && self.weights == WeightFormat::Mxfp4 {
            WeightFormat::Bf16.bytes()
        } else {
            self.weights.bytes()
        };
        common * common_bytes + experts * self.weights.bytes() + 2.0 * self.head_weights() * WeightFormat::Bf16.bytes()
    }

    /// Bytes of KV that one token leaves in all layers.
    pub fn kv_bytes_per_token(&self) -> f64 {
        2.0 * (self.layers * self.kv_heads * self.head_dim) as f64 * self.kv_bytes
    }

    /// Context that attention reads per layer on average at position `context`: less than that if every second layer has a
    /// window.
    pub fn attended_with(window: Option<usize>, context: f64) -> f64 {
        match window {
            None => context,
            Some(window) => (context + context.min(window as f64)) / 2.0,
        }
    }

    /// Reads a model's shape from `config.json` in a Hugging Face directory. Weights are taken to be bf16.
    pub fn from_directory(directory: &Path) -> Result<Model, String> {
        let path = directory.join("config.json");
        let fail = |why: String| format!("{}: {why}", path.display());
        let text = std::fs::read_to_string(&path).map_err(|error| fail(error.to_string()))?;
        let config: serde_json::Value = serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
        let number = |key: &str| config[key].as_u64().map(|n| n as usize);
        let need = |key: &str| number(key).ok_or_else(|| fail(format!("{key} is missing or no number")));
        let (hidden, heads) = (need("hidden_size")?, need("num_attention_heads")?);
        Ok(Model {
            name: directory.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned()),
            layers: need("num_hidden_layers")?,
            hidden,
            heads,
            kv_heads: number("num_key_value_heads").unwrap_or(heads),
            head_dim: number("head_dim").unwrap_or(hidden / heads.max(1)),
            ffn: need("intermediate_size")?,
            vocab: need("vocab_size")?,
            experts: None,
            weights: WeightFormat::Bf16,
            window: None,
            kv_bytes: 2.0,
        })
    }
}

fn llama_8b(name: &str, weights: WeightFormat) -> Model {
    Model {
        name: name.into(),
        layers: 32,
        hidden: 4096,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        ffn: 14336,
        vocab: 128_256,
        experts: None,
        weights,
        window: None,
        kv_bytes: 2.0,
    }
}

fn llama_70b(name: &str, weights: WeightFormat) -> Model {
    Model { layers: 80, hidden: 8192, heads: 64, ffn: 28672, ..llama_8b(name, weights) }
}

/// The models known by name. Their shapes are those of the published `config.json` files.
pub fn known() -> Vec<Model> {
    vec![
        llama_8b("llama-3.1-8b", WeightFormat::Bf16),
        llama_8b("llama-3.1-8b-fp8", WeightFormat::Fp8),
        llama_70b("llama-3.3-70b", WeightFormat::Bf16),
        llama_70b("llama-3.3-70b-fp8", WeightFormat::Fp8),
        llama_70b("llama-3.3-70b-nvfp4", WeightFormat::Nvfp4),
        llama_70b("r1-distill-llama-70b-fp8", WeightFormat::Fp8),
        Model {
            name: "gpt-oss-120b".into(),
            layers: 36,
            hidden: 2880,
            heads: 64,
            kv_heads: 8,
            head_dim: 64,
            ffn: 2880,
            vocab: 201_088,
            experts: Some(Experts { count: 128, used: 4 }),
            weights: WeightFormat::Mxfp4,
            window: Some(128),
            kv_bytes: 2.0,
        },
    ]
}

/// The model with this name, or the one in this directory.
pub fn model(name: &str) -> Result<Model, String> {
    let all = known();
    if let Some(found) = all.iter().find(|model| model.name == name) {
        return Ok(found.clone());
    }
    if Path::new(name).is_dir() {
        return Model::from_directory(Path::new(name));
    }
    let names: Vec<&str> = all.iter().map(|model| model.name.as_str()).collect();
    Err(format!("model {name:?}: neither a directory nor known; known are {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published numbers of parameters, in units of 10⁹: the shapes give them within 1 %.
    #[test]
    fn parameters_are_those_published() {
        for (name, billions) in [("llama-3.1-8b", 8.03), ("llama-3.3-70b", 70.6), ("gpt-oss-120b", 116.8)] {
            let model = model(name).unwrap();
            let (common, experts) = model.layer_weights();
            // The embedding is as large as the output projection.
            let found = (common + experts + 2.0 * model.head_weights()) / 1e9;
            assert!((found / billions - 1.0).abs() < 0.01, "{name}: {found}");
        }
        let (common, experts) = model("gpt-oss-120b").unwrap().layer_weights();
        let oss = model("gpt-oss-120b").unwrap();
        let active = (common + experts * oss.expert_share() + 1.0 * oss.head_weights()) / 1e9;
        assert!((active / 5.13 - 1.0).abs() < 0.03, "published: 5.13, counted: {active}");
    }

    #[test]
    fn kv_of_a_token() {
        assert_eq!(model("llama-3.1-8b").unwrap().kv_bytes_per_token(), 131_072.0);
        assert_eq!(model("llama-3.3-70b").unwrap().kv_bytes_per_token(), 327_680.0);
    }

    #[test]
    fn a_window_limits_half_of_the_layers() {
        let window = model("gpt-oss-120b").unwrap().window;
        assert_eq!(Model::attended_with(window, 100.0), 100.0);
        assert_eq!(Model::attended_with(window, 1128.0), (1128.0 + 128.0) / 2.0);
        assert_eq!(Model::attended_with(None, 1128.0), 1128.0);
    }

    #[test]
    fn an_unknown_name_lists_the_known() {
        let error = model("nothing").unwrap_err();
        assert!(error.contains("nothing") && error.contains("llama-3.1-8b"), "{error}");
    }
}
