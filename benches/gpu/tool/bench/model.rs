//! Synthetic Llama models: real shapes, and bf16 weights from one repeated pattern, so that writing a model takes
//! seconds.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub name: &'static str,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub vocab: usize,
    /// Whether the output layer is the embedding table.
    pub tied: bool,
}

#[rustfmt::skip]
pub const LLAMA_8B: Shape = Shape {
    name: "8b", hidden: 4096, layers: 32, heads: 32, kv_heads: 8, head_dim: 128, ffn: 14336, vocab: 128_256, tied: false,
};
#[rustfmt::skip]
pub const LLAMA_1B: Shape = Shape {
    name: "1b", hidden: 2048, layers: 16, heads: 32, kv_heads: 8, head_dim: 64, ffn: 8192, vocab: 128_256, tied: true,
};
/// A toy model for a simulated device.
#[rustfmt::skip]
pub const TOY: Shape = Shape {
    name: "toy", hidden: 64, layers: 2, heads: 4, kv_heads: 2, head_dim: 16, ffn: 96, vocab: 160, tied: true,
};

impl Shape {
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = vec![("model.embed_tokens.weight".to_string(), vec![self.vocab, self.hidden])];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                all.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
            };
            add("input_layernorm", &[self.hidden]);
            add("self_attn.q_proj", &[q, self.hidden]);
            add("self_attn.k_proj", &[kv, self.hidden]);
            add("self_attn.v_proj", &[kv, self.hidden]);
            add("self_attn.o_proj", &[self.hidden, q]);
            add("post_attention_layernorm", &[self.hidden]);
            add("mlp.gate_proj", &[self.ffn, self.hidden]);
            add("mlp.up_proj", &[self.ffn, self.hidden]);
            add("mlp.down_proj", &[self.hidden, self.ffn]);
        }
        all.push(("model.norm.weight".to_string(), vec![self.hidden]));
        if !self.tied {
            all.push(("lm_head.weight".to_string(), vec![self.vocab, self.hidden]));
        }
        all
    }

    /// Elements of the matrices of all layers, without the embedding and the output layer.
    pub fn layer_elements(&self) -> f64 {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        (self.layers * self.hidden * (2 * q + 2 * kv + 3 * self.ffn)) as f64
    }

    /// Bytes of weights that every step has to read.
    pub fn step_bytes(&self) -> f64 {
        2.0 * (self.layer_elements() + (self.vocab * self.hidden) as f64)
    }

    pub fn kv_bytes_per_token(&self) -> f64 {
        (2 * 2 * self.layers * self.kv_heads * self.head_dim) as f64
    }

    /// Operations of a prompt: two per weight and token, and the lower triangle of attention.
    pub fn prefill_flops(&self, tokens: usize) -> f64 {
        let tokens = tokens as f64;
        let attention = 2.0 * tokens * tokens * (self.layers * self.heads * self.head_dim) as f64;
        2.0 * self.layer_elements() * tokens + attention
    }

    fn config(&self) -> serde_json::Value {
        serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": self.hidden, "num_hidden_layers": self.layers, "head_dim": self.head_dim,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.ffn, "vocab_size": self.vocab, "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": self.tied, "torch_dtype": "bfloat16",
            "bos_token_id": 1, "eos_token_id": 2,
        })
    }

    /// Writes the model under `root` unless it exists, and returns its directory.
    pub fn write(&self, root: &Path) -> std::io::Result<PathBuf> {
        let dir = root.join(self.name);
        let done = dir.join("config.json");
        if done.exists() {
            return Ok(dir);
        }
        fs::create_dir_all(&dir)?;
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".to_string(), serde_json::json!({"format": "pt"}));
        let mut offset = 0;
        for (name, shape) in self.tensors() {
            let bytes = 2 * shape.iter().product::<usize>();
            let entry = serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + bytes]});
            header.insert(name, entry);
            offset += bytes;
        }
        let mut header = serde_json::to_string(&header)?;
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(64) + 56 - header.len()));
        let mut out = File::create(dir.join("model.safetensors"))?;
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        let pattern = pattern(offset.min(64 << 20));
        let norm = half::bf16::ONE.to_le_bytes().repeat(self.hidden);
        let mut at = 0;
        for (_, shape) in self.tensors() {
            if shape.len() == 1 {
                out.write_all(&norm)?;
                continue;
            }
            let mut left = 2 * shape.iter().product::<usize>();
            while left > 0 {
                let piece = &pattern[at..(at + left).min(pattern.len())];
                out.write_all(piece)?;
                left -= piece.len();
                at = (at + piece.len()) % pattern.len();
            }
        }
        fs::write(done, serde_json::to_string_pretty(&self.config())?)?;
        Ok(dir)
    }
}

/// Nearly normal bf16 values with standard deviation 0.02.
fn pattern(bytes: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut out = Vec::with_capacity(bytes);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // The sum of four 16-bit numbers has the standard deviation 65536 / sqrt(3).
        let sum: f32 = (0..4).map(|i| (state >> (16 * i)) as u16 as f32 - 32767.5).sum();
        out.extend_from_slice(&half::bf16::from_f32(sum * (0.02 * 1.732 / 65536.0)).to_le_bytes());
    }
    out
}
