//! To come.

use crate::error::Result;
use std::sync::Arc;

pub struct Model {}

#[derive(Clone, Debug, Default)]
pub struct ModelInfo {
    pub architecture: String,
    pub n_layers: u32,
    pub n_heads: u32,
    pub n_kv_heads: u32,
    pub head_dim: u32,
    pub vocab_size: u32,
    pub max_context_tokens: u32,
    pub weight_bytes: u64,
    pub kv_bytes_per_token: u64,
}

impl Model {
    pub fn load(_path: &str) -> Result<Arc<Model>> {
        crate::bail!(Unsupported, "to come")
    }
    pub fn info(&self) -> ModelInfo {
        ModelInfo::default()
    }
    pub fn fingerprint(&self) -> [u8; 32] {
        [0; 32]
    }
    pub fn tokenize(&self, _text: &str, _add_special: bool) -> Result<Vec<u32>> {
        Ok(Vec::new())
    }
    pub fn chat_prompt(&self, _messages_json: &str) -> Result<String> {
        Ok(String::new())
    }
}

pub struct Detokenizer {}

impl Detokenizer {
    pub fn new(_model: &Arc<Model>) -> Result<Detokenizer> {
        Ok(Detokenizer {})
    }
    pub fn push(&mut self, _token: u32) -> Result<String> {
        Ok(String::new())
    }
    pub fn flush(&mut self) -> String {
        String::new()
    }
}
