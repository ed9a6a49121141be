//! Models from Hugging Face directories: config, mapped weights, the decoder, and text helpers.
//!
//! This module knows file formats and the order of operations in a decoder. It must not know devices, requests or how KV is
//! kept: it describes weights to a backend and runs steps through the [`crate::backend::Backend`] trait. Every file of a
//! directory is untrusted: a hostile one costs bounded time and memory and ends in an error.
//!
//! | to change | look in |
//! | --- | --- |
//! | an architecture | `arch`, and `checkpoint` for its tensors |
//! | a config key, a limit | `config`, `rope_config` |
//! | rotary scaling | `rope` |
//! | what a valid checkpoint is | `safetensors`, `tensor_files`, `checkpoint` |
//! | the forward pass | `decoder` |
//! | when two models are the same | `fingerprint`, and `fingerprint_cache` for models loaded before |
//! | the weights on a device | `weights`, `placed` |
//! | text | `tokenizer` and what it accepts (`tokenizer_limits`), `token_scheme`, `detokenizer`, `chat` |

pub mod arch;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod decoder;
pub mod detokenizer;
pub mod fingerprint;
pub mod fingerprint_cache;
pub mod json;
mod name;
mod placed;
pub mod rope;
pub mod rope_config;
pub mod safetensors;
mod tensor_files;
pub mod token_scheme;
pub mod tokenizer;
mod tokenizer_limits;
pub mod weights;

use once_cell::sync::OnceCell;
use std::path::PathBuf;
use std::sync::Arc;

use crate::backend::{BackendDevice, KvGeometry, Progress};
use crate::bail;
use crate::error::Result;
use crate::tensor::Dtype;

use chat::{ChatInput, ChatTemplate};
use checkpoint::Checkpoint;
use config::ModelConfig;
use detokenizer::Detokenizer;
use fingerprint_cache::FingerprintCache;
use placed::PlacedWeights;
use tokenizer::Tokenizer;
use weights::Weights;

/// A loaded model directory. Weights stay mapped; tokenizer and template are made when first asked for, so a host that
/// brings its own tokens does not pay for them.
pub struct Model {
    dir: PathBuf,
    config: ModelConfig,
    checkpoint: Checkpoint,
    fingerprint: [u8; 32],
    placed: PlacedWeights,
    /// Read when first asked for; a file that could not be read is tried again.
    tokenizer: OnceCell<Option<Arc<Tokenizer>>>,
    chat: OnceCell<Option<ChatTemplate>>,
}

/// The figures of a model, as the C API reports them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Class name, as `architectures` in config.json has it.
    pub architecture: &'static str,
    /// Decoder layers.
    pub n_layers: u32,
    /// Query heads.
    pub n_heads: u32,
    /// Key and value heads.
    pub n_kv_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Tokens that a sequence may have.
    pub max_context_tokens: u32,
    /// Bytes of the weights that the decoder uses, as stored.
    pub weight_bytes: u64,
    /// Type of the embedding table: what the checkpoint is mostly stored in.
    pub weight_dtype: Dtype,
    /// K and V of one token over all layers, with elements of `weight_dtype`; `kv_geometry` gives other types'.
    pub kv_bytes_per_token: u64,
}

impl Model {
    /// Loads a directory with config.json and model.safetensors (or its shards and index). Config and tensor headers
    /// are checked in full, and the weights are read once for the fingerprint, unless that is known from an earlier load.
    pub fn load(path: &str) -> Result<Arc<Model>> {
        let dir = PathBuf::from(path);
        match std::fs::metadata(&dir) {
            Err(e) => return Err(crate::error::Error::io(path, &e)),
            Ok(meta) if !meta.is_dir() => {
                bail!(InvalidArgument, "{path}: expected a Hugging Face model directory, found a file")
            }
            Ok(_) => {}
        }
        let config = ModelConfig::read(&dir)?;
        let checkpoint = Checkpoint::open(&dir, &config)?;
        let hash = || fingerprint::fingerprint(&config, &checkpoint);
        let fingerprint = match FingerprintCache::of_user() {
            Some(cache) => cache.get_or(&dir, &config, &checkpoint, hash)?,
            None => hash()?,
        };
        crate::log!(Info, "model", "loaded {path}");
        Ok(Arc::new(Model {
            dir,
            config,
            checkpoint,
            fingerprint,
            placed: PlacedWeights::default(),
            tokenizer: OnceCell::new(),
            chat: OnceCell::new(),
        }))
    }

    /// The resolved config.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Name of the model for people and metrics: the directory's name, or `organisation/model` where the directory is a
    /// snapshot in a Hugging Face cache.
    pub fn name(&self) -> String {
        name::of(&self.dir)
    }

    /// Figures of the model.
    pub fn info(&self) -> ModelInfo {
        let config = &self.config;
        let weight_dtype = self.checkpoint.embed.dtype;
        ModelInfo {
            architecture: config.architecture.name(),
            n_layers: config.layers.len() as u32,
            n_heads: config.heads,
            n_kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            vocab_size: config.vocab_size,
            max_context_tokens: config.max_context_tokens,
            weight_bytes: self.checkpoint.weight_bytes(),
            weight_dtype,
            kv_bytes_per_token: self.kv_geometry(1, weight_dtype).token_bytes() as u64,
        }
    }

    /// The shape of a KV pool for this model, unsharded.
    pub fn kv_geometry(&self, block_tokens: u32, dtype: Dtype) -> KvGeometry {
        let config = &self.config;
        let layers = config.layers.len() as u32;
        KvGeometry { layers, kv_heads: config.kv_heads, head_dim: config.head_dim, block_tokens, dtype, shards: 1 }
    }

    /// The sliding window of each layer's attention; None: the layer attends to all tokens.
    pub fn layer_windows(&self) -> impl Iterator<Item = Option<u32>> {
        self.config.layers.iter().map(|layer| layer.window)
    }

    /// All ids that end a generation.
    pub fn eos_ids(&self) -> &[u32] {
        &self.config.eos_token_ids
    }

    /// Some(n): in a sequence longer than n the KV of every token depends on the sequence's length (dynamic NTK
    /// rope), so blocks of such a sequence must not be shared with another.
    pub fn rope_depends_on_length(&self) -> Option<u32> {
        self.config.rope.depends_on_length()
    }

    /// The identity of this model; see the module [`fingerprint`].
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// The weights on a device: placed there once for all caches and engines, and there until the last of them goes.
    /// `shared`: as one copy together with other processes that ask for that, where the device supports it. `progress` must
    /// not ask for weights itself.
    pub fn weights<D: BackendDevice>(
        &self,
        device: &D,
        shared: bool,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Weights<D::Backend>>> {
        let read_ahead = || self.checkpoint.shards().iter().for_each(|shard| shard.mapping.will_need());
        let dtype = self.info().weight_dtype;
        let request = placed::request(&self.checkpoint, self.fingerprint(), dtype, shared, &read_ahead);
        self.placed.get(device, &self.checkpoint, &request, progress)
    }

    /// UNSUPPORTED when the directory has no tokenizer.json.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        match self.tokenizer.get_or_try_init(|| Ok(Tokenizer::read(&self.dir)?.map(Arc::new)))? {
            Some(tokenizer) => Ok(tokenizer),
            None => bail!(Unsupported, "{}: the model has no tokenizer.json", self.dir.display()),
        }
    }

    /// BLAKE3 of tokenizer.json; None without one.
    pub fn tokenizer_digest(&self) -> Option<[u8; 32]> {
        self.tokenizer().ok().map(|tokenizer| tokenizer.digest())
    }

    /// See [`Tokenizer::tokenize`].
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        self.tokenizer()?.tokenize(text, add_special, parse_special)
    }

    /// The bytes that a token stands for; of a special one its written form, of padding nothing.
    pub fn token_bytes(&self, token: u32) -> Result<Vec<u8>> {
        detokenizer::token_bytes(self.tokenizer()?, self.config.vocab_size, token)
    }

    /// A stream of text for one sequence's tokens.
    pub fn detokenizer(&self, skip_special: bool) -> Result<Detokenizer> {
        Ok(Detokenizer::new(self.tokenizer()?.clone(), self.config.vocab_size, skip_special))
    }

    /// Renders a conversation with the model's chat template, ready for [`Model::tokenize`] without `add_special` and
    /// with `parse_special`.
    pub fn chat_prompt(&self, input: &ChatInput<'_>) -> Result<String> {
        match self.chat.get_or_try_init(|| ChatTemplate::read(&self.dir))? {
            Some(template) => template.render(input),
            None => bail!(
                Unsupported,
                "{}: the model has no chat template (chat_template.jinja or tokenizer_config.json)",
                self.dir.display()
            ),
        }
    }
}
