//! Models from Hugging Face directories: config, weights (mapped, used in place), decoder, and the text helpers.
//!
//! | to change | look in |
//! | --- | --- |
//! | an architecture | `arch`, and `checkpoint` for its tensors |
//! | a config key, a limit | `config`, `rope_config` |
//! | rotary scaling | `rope` |
//! | what a valid checkpoint is | `safetensors`, `checkpoint` |
//! | the forward pass | `decoder` |
//! | when two models are the same | `fingerprint`, and `fingerprint_cache` for models loaded before |
//! | text | `tokenizer`, `detokenizer`, `chat`, `chat_functions` |

pub mod arch;
pub mod chat;
pub mod chat_functions;
pub mod checkpoint;
pub mod config;
pub mod decoder;
pub mod detokenizer;
pub mod fingerprint;
pub mod fingerprint_cache;
pub mod json;
pub mod rope;
pub mod rope_config;
pub mod safetensors;
pub mod tokenizer;
pub mod weights;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::backend::cpu::CpuBackend;
use crate::backend::cuda::{CudaBackend, Depot, Device, Loader};
use crate::backend::{KvGeometry, Progress};
use crate::bail;
use crate::error::{Result, Status};
use crate::tensor::Dtype;

use chat::ChatTemplate;
use checkpoint::Checkpoint;
use config::ModelConfig;
use detokenizer::Detokenizer;
use fingerprint_cache::FingerprintCache;
use tokenizer::Tokenizer;
use weights::{InPlace, ToDevice, Weights};

/// A loaded model directory. Weights stay mapped; tokenizer and template are made when first asked for, so a host that
/// brings its own tokens does not pay for them.
pub struct Model {
    dir: PathBuf,
    config: ModelConfig,
    checkpoint: Checkpoint,
    fingerprint: [u8; 32],
    cpu: Mutex<Option<Arc<Weights<CpuBackend>>>>,
    /// By device ordinal.
    cuda: Mutex<Vec<(i32, Weak<Weights<CudaBackend>>)>>,
    tokenizer: OnceLock<Result<Option<Arc<Tokenizer>>>>,
    chat: OnceLock<Result<Option<ChatTemplate>>>,
}

/// The figures of a model, as the C API reports them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    pub architecture: &'static str,
    pub n_layers: u32,
    pub n_heads: u32,
    pub n_kv_heads: u32,
    pub head_dim: u32,
    pub vocab_size: u32,
    pub max_context_tokens: u32,
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
            cpu: Mutex::new(None),
            cuda: Mutex::default(),
            tokenizer: OnceLock::new(),
            chat: OnceLock::new(),
        }))
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

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

    /// The weights for the CPU: the mapping itself, shared by all engines.
    pub fn cpu_weights(&self) -> Result<Arc<Weights<CpuBackend>>> {
        let mut cpu = self.cpu.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weights) = &*cpu {
            return Ok(weights.clone());
        }
        for shard in self.checkpoint.shards() {
            shard.mapping.will_need();
        }
        let weights = Arc::new(Weights::build(&self.checkpoint, &mut InPlace)?);
        *cpu = Some(weights.clone());
        Ok(weights)
    }

    /// The weights on a CUDA device: copied there once for all caches and engines, and there until the last of them goes.
    /// `shared`: if this process has none there yet, those of another process that shares its own, and shared by this one
    /// as well. `progress` must not ask for weights itself.
    pub fn cuda_weights(
        &self,
        device: &Arc<Device>,
        shared: bool,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Weights<CudaBackend>>> {
        let dtype = self.info().weight_dtype;
        let bytes = ToDevice::bytes(&self.checkpoint, dtype);
        let mut cuda = self.cuda.lock().unwrap_or_else(PoisonError::into_inner);
        cuda.retain(|(_, weights)| weights.strong_count() > 0);
        if let Some(weights) = cuda.iter().find(|(at, _)| *at == device.ordinal()).and_then(|(_, w)| w.upgrade()) {
            progress(bytes, bytes)?;
            return Ok(weights);
        }
        let depot = match shared {
            false => Depot::Apart(device.clone()),
            true => self.shared_depot(device, dtype, bytes, progress)?,
        };
        let weights = match self.upload(depot, dtype, bytes, progress) {
            // As of two builds of one version: nothing is lost but memory.
            Err(error) if shared && error.status == Status::Incompatible => {
                crate::log!(Warn, "model", "weights of this process's own: {error}");
                self.upload(Depot::Apart(device.clone()), dtype, bytes, progress)?
            }
            loaded => loaded?,
        };
        let weights = Arc::new(weights);
        cuda.push((device.ordinal(), Arc::downgrade(&weights)));
        Ok(weights)
    }

    fn upload(
        &self,
        depot: Depot,
        dtype: Dtype,
        bytes: u64,
        progress: &mut Progress<'_>,
    ) -> Result<Weights<CudaBackend>> {
        if !depot.is_filled() {
            self.checkpoint.shards().iter().for_each(|shard| shard.mapping.will_need());
        }
        let mut each = |done, total| progress(done, total);
        let mut upload = ToDevice { loader: Loader::watched(depot, bytes, &mut each)?, dtype };
        let weights = Weights::build(&self.checkpoint, &mut upload)?;
        upload.loader.finish()?;
        Ok(weights)
    }

    /// Processes that load the same weights onto the same device in the same way meet here.
    fn shared_depot(
        &self,
        device: &Arc<Device>,
        dtype: Dtype,
        bytes: u64,
        progress: &mut Progress<'_>,
    ) -> Result<Depot> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.fingerprint()).update(&device.uuid()?).update(&bytes.to_le_bytes());
        hasher.update(dtype.name().as_bytes()).update(env!("CARGO_PKG_VERSION").as_bytes());
        let name = format!("cleave-weights-{}", &hasher.finalize().to_hex()[..32]);
        // A bias may be there in two types.
        let (most, tensors) = (ToDevice::most_bytes(&self.checkpoint, dtype), 2 * self.checkpoint.tensors().len());
        Depot::shared(device, &name, most, tensors, &mut || progress(0, bytes))
    }

    /// UNSUPPORTED when the directory has no tokenizer.json.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        match self.tokenizer.get_or_init(|| Ok(Tokenizer::read(&self.dir)?.map(Arc::new))) {
            Ok(Some(tokenizer)) => Ok(tokenizer),
            Ok(None) => bail!(Unsupported, "{}: the model has no tokenizer.json", self.dir.display()),
            Err(e) => Err(e.clone()),
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

    /// Renders a JSON list of messages with the model's chat template, ready for [`Model::tokenize`] without
    /// `add_special` and with `parse_special`.
    pub fn chat_prompt(&self, messages_json: &str) -> Result<String> {
        match self.chat.get_or_init(|| ChatTemplate::read(&self.dir)) {
            Ok(Some(template)) => template.render(messages_json),
            Ok(None) => bail!(
                Unsupported,
                "{}: the model has no chat template (chat_template.jinja or tokenizer_config.json)",
                self.dir.display()
            ),
            Err(e) => Err(e.clone()),
        }
    }
}
