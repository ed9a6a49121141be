//! llama.cpp in the same run: `LLAMA_BENCH=<llama-bench>` with GGUF files of the synthetic models, which [`write_gguf`]
//! makes from the weights that cleave ran.

use crate::synthetic::Shape;
use std::fs;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs llama-bench for each of `prompts` and for `generate` generated tokens. Returns (test, tokens/s).
pub fn llama_bench(program: &str, gguf: &Path, threads: usize, generate: u32) -> Result<Vec<(String, f64)>, String> {
    let output = Command::new(program)
        .args(["-m", &gguf.to_string_lossy(), "-p", "512,2048", "-n", &generate.to_string()])
        .args(["-t", &threads.to_string(), "-r", "2", "-o", "json"])
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).map_err(|e| format!("{program}: {e}"))?;
    let number = |row: &serde_json::Value, key: &str| row[key].as_f64().unwrap_or(0.0);
    Ok(rows
        .iter()
        .map(|row| {
            let prompt = number(row, "n_prompt");
            let what = if prompt > 0.0 { format!("prefill {prompt}") } else { "decode batch 1".to_string() };
            (what, number(row, "avg_ts"))
        })
        .collect())
}

/// Writes the model in `dir` as GGUF version 3 beside it, with bf16 matrices and f32 norms, unless the file exists.
/// Format: docs/gguf.md of ggml; tensor names of its Llama architecture. llama.cpp rotates neighbouring pairs
/// where Hugging Face rotates halves. The rows of q and k are not reordered for that: the file measures speed only, and
/// would not generate sensible text.
pub fn write_gguf(shape: &Shape, dir: &Path) -> std::io::Result<PathBuf> {
    let path = dir.join("model-bf16.gguf");
    if path.exists() {
        return Ok(path);
    }
    let partial = dir.join("model-bf16.gguf.partial");
    let mut weights = fs::File::open(dir.join("model.safetensors"))?;
    let mut length = [0u8; 8];
    weights.read_exact(&mut length)?;
    let data = 8 + u64::from_le_bytes(length);

    let tensors = shape.tensors();
    let mut head = Vec::new();
    head.extend_from_slice(b"GGUF");
    head.extend_from_slice(&3u32.to_le_bytes());
    head.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    let mut metadata = Metadata::default();
    metadata.string("general.architecture", "llama");
    metadata.string("general.name", shape.name);
    for (key, value) in [
        ("block_count", shape.layers),
        ("context_length", 8192),
        ("embedding_length", shape.hidden),
        ("feed_forward_length", shape.ffn),
        ("attention.head_count", shape.heads),
        ("attention.head_count_kv", shape.kv_heads),
        ("rope.dimension_count", shape.hidden / shape.heads),
        ("vocab_size", shape.vocab),
    ] {
        metadata.u32(&format!("llama.{key}"), value as u32);
    }
    metadata.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    metadata.string("tokenizer.ggml.model", "no_vocab");
    head.extend_from_slice(&metadata.count.to_le_bytes());
    head.extend_from_slice(&metadata.bytes);
    let mut offset = 0u64;
    for (name, dims) in &tensors {
        string(&mut head, &gguf_name(name));
        head.extend_from_slice(&(dims.len() as u32).to_le_bytes());
        for dim in dims.iter().rev() {
            head.extend_from_slice(&(*dim as u64).to_le_bytes());
        }
        let (kind, width) = kind(dims);
        head.extend_from_slice(&kind.to_le_bytes());
        head.extend_from_slice(&offset.to_le_bytes());
        offset += (dims.iter().product::<usize>() as u64 * width).next_multiple_of(32);
    }
    head.resize(head.len().next_multiple_of(32), 0);

    let mut out = BufWriter::with_capacity(1 << 20, fs::File::create(&partial)?);
    out.write_all(&head)?;
    weights.seek(SeekFrom::Start(data))?;
    for (_, dims) in &tensors {
        let n: usize = dims.iter().product();
        let mut bytes = vec![0u8; 2 * n];
        weights.read_exact(&mut bytes)?;
        if kind(dims).1 == 4 {
            let wide =
                bytes.chunks_exact(2).flat_map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32().to_le_bytes());
            bytes = wide.collect();
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        out.write_all(&bytes)?;
    }
    out.flush()?;
    fs::rename(partial, &path)?;
    Ok(path)
}

/// Type number in ggml and size of an element: BF16 for matrices, F32 for norms.
fn kind(dims: &[usize]) -> (u32, u64) {
    if dims.len() == 2 { (30, 2) } else { (0, 4) }
}

fn gguf_name(name: &str) -> String {
    let fixed = [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
    ];
    if let Some((_, to)) = fixed.iter().find(|(from, _)| *from == name) {
        return (*to).to_string();
    }
    let parts = [
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    parts.iter().fold(name.to_string(), |name, (from, to)| name.replace(from, to))
}

#[derive(Default)]
struct Metadata {
    count: u64,
    bytes: Vec<u8>,
}

impl Metadata {
    fn key(&mut self, key: &str, kind: u32) {
        string(&mut self.bytes, key);
        self.bytes.extend_from_slice(&kind.to_le_bytes());
        self.count += 1;
    }

    fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn string(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        string(&mut self.bytes, value);
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}
