//! A KV cache with its model: what the engines over it share.

use super::Metrics;
use super::device_runtime::{self, DeviceRuntime, Sharing};
use super::event::{Event, EventKind};
use super::prepare::Bounds;
use super::queue::Queue;
use super::saturation;
use crate::backend::devices::DEVICE_CPU;
use crate::backend::{ComputeShare, KvGeometry, Placement, Progress};
use crate::error::Result;
use crate::kv::{self, BlockTable, CacheConfig, CacheIdentity, HashChain, KvId, LayerKind};
use crate::model::Model;
use crate::model::decoder::Executor;
use crate::sequence::Snapshot;
use crate::tensor::Dtype;
use crate::transport::{Encryption, Node, NodeConfig};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const DEFAULT_BLOCK_TOKENS: u32 = 16;
const MAX_BLOCK_TOKENS: u32 = 256;
/// Reserved, not touched: pages are committed as blocks come into use.
const DEFAULT_CACHE_BYTES: u64 = 1 << 30;
const DEFAULT_LEASE: Duration = Duration::from_secs(30);

/// Zero means default.
#[derive(Clone, Debug, Default)]
pub struct CacheOptions {
    pub block_tokens: u32,
    pub dtype: Option<Dtype>,
    pub bytes: u64,
    pub lease: Option<Duration>,
    /// None: random, so that only this cache's own process can import its handles.
    pub secret: Option<[u8; 32]>,
    pub no_prefix_cache: bool,
    /// A peer that is silent for so long in the middle of a transfer is gone.
    pub peer_timeout: Option<Duration>,
    /// Refuses to import KV of another block size, dtype or shards instead of converting it.
    pub no_convert: bool,
    /// One copy of the weights on a CUDA device for all processes that say so.
    pub share_weights: bool,
    /// Layout of a tensor-parallel group of as many shards, 0 means 1; the CPU computes on it as one device.
    pub shards: u32,
}

/// A KV cache for one model on one device, with what its engines share: weights, block pool, handles.
pub struct ModelCache {
    /// Counts the caches of the process from 0, in order of creation.
    number: u64,
    model: Arc<Model>,
    home: Box<dyn DeviceRuntime>,
    geometry: KvGeometry,
    n_blocks: usize,
    kv: Arc<kv::Cache>,
    node: Arc<Node>,
    /// The host gave a secret: others can import.
    served: bool,
    prefix_cache: bool,
    /// Sequences with a prompt longer than this have KV that depends on that length and cannot be shared.
    shareable_up_to: u32,
}

impl ModelCache {
    /// `devices`: none (the CPU), or one.
    pub fn create(model: &Arc<Model>, devices: &[i32], options: CacheOptions) -> Result<Arc<ModelCache>> {
        Self::create_watched(model, devices, options, &mut |_, _| Ok(()))
    }

    /// The same; `progress` is told of the weights, on this thread, and makes no cache itself.
    pub fn create_watched(
        model: &Arc<Model>,
        devices: &[i32],
        options: CacheOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<ModelCache>> {
        if devices.len() > 1 {
            crate::bail!(Unsupported, "{} devices: a cache lies on one", devices.len());
        }
        let device = devices.first().copied().unwrap_or(DEVICE_CPU);
        let info = model.info();
        let block_tokens = if options.block_tokens == 0 { DEFAULT_BLOCK_TOKENS } else { options.block_tokens };
        if block_tokens > MAX_BLOCK_TOKENS {
            crate::bail!(InvalidArgument, "block_tokens {block_tokens} is over {MAX_BLOCK_TOKENS}");
        }
        let geometry = model.kv_geometry(block_tokens, options.dtype.unwrap_or(info.weight_dtype));
        let geometry = KvGeometry { shards: options.shards.max(1), ..geometry };
        geometry.validate()?;
        let bytes = if options.bytes == 0 { DEFAULT_CACHE_BYTES } else { options.bytes };
        let n_blocks = (bytes / geometry.block_bytes() as u64).min(1 << 22) as usize;
        if n_blocks == 0 {
            crate::bail!(
                InvalidArgument,
                "bytes_per_device {bytes} is less than one block of {} bytes ({block_tokens} tokens)",
                geometry.block_bytes()
            );
        }
        // Only whoever has the secret can import: without one that the host gave, nobody else does.
        let serve = options.secret.is_some();
        let sharing = Sharing { pool: serve, weights: options.share_weights };
        let home = device_runtime::make(model, device, geometry, n_blocks, sharing, progress)?;
        let identity = CacheIdentity {
            fingerprint: model.fingerprint(),
            tokenizer_digest: model.tokenizer_digest().unwrap_or_default(),
            name: info.architecture.to_string(),
        };
        let shareable_up_to = model.rope_depends_on_length().unwrap_or(u32::MAX);
        let config = CacheConfig {
            lease: options.lease.unwrap_or(DEFAULT_LEASE),
            secret: options.secret,
            share_up_to_tokens: if options.no_prefix_cache { 0 } else { shareable_up_to },
            no_convert: options.no_convert,
            layer_kinds: model
                .layer_windows()
                .map(|window| window.map_or(LayerKind::Full, LayerKind::Window))
                .collect(),
        };
        let kv = kv::Cache::new(identity, home.store(), config)?;
        let mib = (n_blocks * geometry.block_bytes()) >> 20;
        let products = home.product_path();
        crate::log!(
            Info,
            "cache",
            "created: {n_blocks} blocks of {block_tokens} tokens, {mib} MiB; matrix products by {products}"
        );
        let defaults = NodeConfig::default();
        let peer_timeout = options.peer_timeout.unwrap_or(defaults.peer_timeout);
        static CREATED: AtomicU64 = AtomicU64::new(0);
        Ok(Arc::new(ModelCache {
            number: CREATED.fetch_add(1, Ordering::Relaxed),
            home,
            geometry,
            n_blocks,
            node: Node::new(&kv, NodeConfig { serve, peer_timeout })?,
            kv,
            served: serve,
            prefix_cache: !options.no_prefix_cache,
            shareable_up_to,
            model: model.clone(),
        }))
    }

    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The cache's name in metrics: caches of the process are counted from 0, in order of creation.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The metrics of the cache itself; those of an engine are zero.
    pub fn metrics(&self) -> Metrics {
        Metrics::of_cache(&self.kv.stats())
    }

    /// Handles, leases, images, audit.
    pub fn kv(&self) -> &Arc<kv::Cache> {
        &self.kv
    }

    pub(super) fn executor(&self, place: Placement) -> Result<Box<dyn Executor>> {
        self.home.executor(&self.model, place)
    }

    /// What multiplies matrices on the cache's device: an instruction set of the CPU, "cublaslt" or "own kernels".
    pub fn product_path(&self) -> &'static str {
        self.home.product_path()
    }

    /// See [`DeviceRuntime::compute_share`].
    pub(super) fn compute_share(&self, percent: u32, leaving: u32) -> Result<ComputeShare> {
        self.home.compute_share(percent, leaving)
    }

    /// The device whose multiprocessors engines share; None on the CPU.
    pub(super) fn partitioned_device(&self) -> Option<i32> {
        self.home.measured()
    }

    /// What a measurement on so many multiprocessors holds for. None where there is none.
    pub(super) fn saturation_key(&self, multiprocessors: u32) -> Option<saturation::Key> {
        let device = self.home.measured()?;
        let model = self.model.fingerprint();
        Some(saturation::Key { device, multiprocessors, model, geometry: self.geometry })
    }

    pub(super) fn bounds(&self) -> Bounds {
        let info = self.model.info();
        Bounds {
            vocab_size: info.vocab_size,
            max_context: info.max_context_tokens,
            cache_tokens: self.n_blocks as u64 * self.block_tokens() as u64,
        }
    }

    pub(super) fn block_tokens(&self) -> usize {
        self.geometry.block_tokens as usize
    }

    pub(super) fn eos_ids(&self) -> &[u32] {
        self.model.eos_ids()
    }

    pub(super) fn table(&self) -> BlockTable {
        self.kv.table()
    }

    // ---- prefix cache ----

    pub(super) fn hash_chain(&self, snapshot: &Snapshot) -> HashChain {
        HashChain::new(snapshot.cache_salt, self.block_tokens() as u32)
    }

    /// Whether blocks of the sequence may be shared through the prefix index.
    pub(super) fn is_shareable(&self, snapshot: &Snapshot) -> bool {
        let own = self.prefix_cache && !snapshot.converted;
        own && snapshot.prompts.last().is_none_or(|p| p.1 <= self.shareable_up_to)
    }

    /// Leading tokens of the sequence whose KV is there and may be shared.
    pub(super) fn shareable_tokens(&self, snapshot: &Snapshot) -> usize {
        if self.is_shareable(snapshot) { snapshot.computed.min(self.shareable_up_to) as usize } else { 0 }
    }

    /// Tokens of a prompt whose KV is cached.
    pub(super) fn cached_prefix(&self, snapshot: &Snapshot) -> usize {
        if !self.is_shareable(snapshot) {
            return 0;
        }
        let mut chain = self.hash_chain(snapshot);
        chain.extend(&snapshot.tokens[..snapshot.tokens.len() - 1]);
        self.kv.cached_blocks(chain.hashes()) * self.block_tokens()
    }

    // ---- handles ----

    /// Ticket or image in; a KV_READY event follows on `queue`, if one is given. The handle may be submitted
    /// at once.
    pub fn import(self: &Arc<Self>, queue: Option<&Arc<Queue>>, data: &[u8], user_tag: u64) -> Result<KvId> {
        let reservation = queue.map(|q| q.reserve()).transpose()?;
        let announce = move |kv: KvId, outcome: Result<()>| {
            if let Some(reservation) = reservation {
                let mut event = Event::new(EventKind::KvReady, user_tag, 0);
                event.kv = kv.0;
                event.status = outcome.err().map(|e| e.status);
                reservation.finish(event);
            }
        };
        self.node.import(data, announce)
    }

    /// Lets peers on other machines import; see [`Node::listen`].
    pub fn listen(&self, address: &str, advertise: Option<&str>, encryption: Encryption) -> Result<u16> {
        if !self.served {
            crate::bail!(
                InvalidArgument,
                "a cache without a secret given by the host: nobody else could import from it"
            );
        }
        self.node.listen(address, advertise, encryption)
    }

    /// Tickets, listening, pairing.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Ends every handle and refuses new ones; engines that still run keep the memory until they end.
    pub fn close(&self) {
        self.node.close();
    }
}
