//! Synthetic Llama models in Hugging Face's format, with real shapes and random bf16 weights.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A shape to measure.
#[derive(Clone, Copy)]
pub struct Shape {
    pub name: &'static str,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub ffn: usize,
    pub vocab: usize,
}

/// 125M parameters.
pub const A: Shape = Shape { name: "A", hidden: 768, layers: 12, heads: 12, kv_heads: 4, ffn: 2048, vocab: 32000 };
/// 1.10B parameters.
pub const B: Shape = Shape { name: "B", hidden: 2048, layers: 16, heads: 32, kv_heads: 8, ffn: 8192, vocab: 32000 };

impl Shape {
    /// Tensors in file order: name and shape.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let kv = self.hidden / self.heads * self.kv_heads;
        let mut all = vec![("model.embed_tokens.weight".to_string(), vec![self.vocab, self.hidden])];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                all.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
            };
            add("input_layernorm", &[self.hidden]);
            add("self_attn.q_proj", &[self.hidden, self.hidden]);
            add("self_attn.k_proj", &[kv, self.hidden]);
            add("self_attn.v_proj", &[kv, self.hidden]);
            add("self_attn.o_proj", &[self.hidden, self.hidden]);
            add("post_attention_layernorm", &[self.hidden]);
            add("mlp.gate_proj", &[self.ffn, self.hidden]);
            add("mlp.up_proj", &[self.ffn, self.hidden]);
            add("mlp.down_proj", &[self.hidden, self.ffn]);
        }
        all.push(("model.norm.weight".to_string(), vec![self.hidden]));
        all.push(("lm_head.weight".to_string(), vec![self.vocab, self.hidden]));
        all
    }

    fn config(&self) -> serde_json::Value {
        serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": self.hidden, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.ffn, "vocab_size": self.vocab, "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
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
        let mut offset = 0;
        for (name, shape) in self.tensors() {
            let bytes = 2 * shape.iter().product::<usize>();
            let entry = serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + bytes]});
            header.insert(name, entry);
            offset += bytes;
        }
        let mut header = serde_json::to_string(&header)?;
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(64) + 56 - header.len()));
        let mut out = BufWriter::with_capacity(1 << 20, fs::File::create(dir.join("model.safetensors"))?);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        let mut state = 0x1234_5678_9abc_def1u64;
        for (_, shape) in self.tensors() {
            write_random(&mut out, &shape, &mut state)?;
        }
        out.flush()?;
        fs::write(done, serde_json::to_string_pretty(&self.config())?)?;
        Ok(dir)
    }
}

/// Uniform values with standard deviation 1/sqrt(inputs), so that activations keep their size. Norm weights are near 1.
fn write_random(out: &mut impl Write, shape: &[usize], state: &mut u64) -> std::io::Result<()> {
    let n: usize = shape.iter().product();
    let (middle, width) = match shape {
        [_, inputs] => (0.0, (12.0 / *inputs as f32).sqrt()),
        _ => (1.0, 0.1),
    };
    let mut chunk = Vec::with_capacity(1 << 16);
    for start in (0..n).step_by(1 << 15) {
        chunk.clear();
        for _ in start..n.min(start + (1 << 15)) {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            let unit = (*state >> 40) as f32 / (1 << 24) as f32 - 0.5;
            chunk.extend_from_slice(&half::bf16::from_f32(middle + width * unit).to_le_bytes());
        }
        out.write_all(&chunk)?;
    }
    Ok(())
}
