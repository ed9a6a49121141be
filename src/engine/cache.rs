//! A KV cache together with its model: the weights, blocks and handles that its engines share.

use super::Metrics;
use super::budget;
use super::cache_options::CacheOptions;
use super::device_runtime::{self, DeviceRuntime, Sharing};
use super::event::{Event, EventKind};
use super::prepare::Bounds;
use super::queue::Queue;
use crate::backend::devices::DEVICE_CPU;
use crate::backend::{ComputeShare, KvGeometry, Placement, Progress};
use crate::error::Result;
use crate::kv::{self, BlockTable, CacheConfig, CacheIdentity, HashChain, KvId, LayerKind};
use crate::model::Model;
use crate::model::decoder::Executor;
use crate::sequence::Snapshot;
use crate::transport::{Encryption, Node, NodeConfig};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A KV cache for one model on one or more devices, with what its engines share: weights, block pool, handles.
pub struct ModelCache {
    /// Number of the cache in this process, from 0 in order of creation.
    number: u64,
    model: Arc<Model>,
    home: Box<dyn DeviceRuntime>,
    geometry: KvGeometry,
    n_blocks: usize,
    kv: Arc<kv::Cache>,
    node: Arc<Node>,
    /// Whether the host gave a secret, so that other processes can import.
    served: bool,
    prefix_cache: bool,
    /// Longest prompt in tokens whose KV can be shared. The KV of longer prompts depends on their length.
    shareable_up_to: u32,
}

impl ModelCache {
    /// Creates a cache for `model` on `devices`, or on the CPU if there is none. UNSUPPORTED for more than one device.
    pub fn create(model: &Arc<Model>, devices: &[i32], options: CacheOptions) -> Result<Arc<ModelCache>> {
        Self::create_watched(model, devices, options, &mut |_, _| Ok(()))
    }

    /// Creates a cache as [`ModelCache::create`] does, and reports the loading of the weights to `progress` on this thread. An
    /// error that `progress` returns ends the creation. `progress` must not create a cache itself.
    pub fn create_watched(
        model: &Arc<Model>,
        devices: &[i32],
        options: CacheOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<ModelCache>> {
        let devices = if devices.is_empty() { &[DEVICE_CPU] } else { devices };
        let info = model.info();
        let geometry = options.geometry(model)?;
        let n_blocks = options.n_blocks(&geometry)?;
        // Other processes need the secret to import, so without one from the host there is nobody to serve.
        let serve = options.secret.is_some();
        let sharing = Sharing { pool: serve, weights: options.share_weights };
        let home = device_runtime::make(model, devices, geometry, n_blocks, sharing, progress)?;
        let identity = CacheIdentity {
            fingerprint: model.fingerprint(),
            tokenizer_digest: model.tokenizer_digest().unwrap_or_default(),
            name: info.architecture.to_string(),
        };
        let shareable_up_to = model.rope_depends_on_length().unwrap_or(u32::MAX);
        let config = CacheConfig {
            lease: options.lease(),
            secret: options.secret,
            share_up_to_tokens: if options.no_prefix_cache { 0 } else { shareable_up_to },
            no_convert: options.no_convert,
            layer_kinds: model
                .layer_windows()
                .map(|window| window.map_or(LayerKind::Full, LayerKind::Window))
                .collect(),
            events_kept: options.events_kept,
        };
        let kv = kv::Cache::new(identity, home.shards()?, config)?;
        let mib = (n_blocks * geometry.block_bytes()) >> 20;
        let products = home.product_path();
        crate::log!(
            Info,
            "cache",
            "created: {n_blocks} blocks of {} tokens, {mib} MiB; matrix products by {products}",
            geometry.block_tokens
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

    /// The model that the cache belongs to.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Number of the cache in metrics: caches of the process are numbered from 0 in order of creation.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Metrics of the cache itself; the fields of an engine are zero.
    pub fn metrics(&self) -> Metrics {
        Metrics::of_cache(&self.kv.stats())
    }

    /// The block pool and the handles, without the model.
    pub fn kv(&self) -> &Arc<kv::Cache> {
        &self.kv
    }

    /// An executor that runs the steps of one engine on the cache's device.
    pub(super) fn executor(&self, place: Placement) -> Result<Box<dyn Executor>> {
        self.home.executor(&self.model, place)
    }

    /// Name of the code that multiplies matrices on the cache's device: a CPU instruction set, "cublaslt" or "own kernels".
    pub fn product_path(&self) -> &'static str {
        self.home.product_path()
    }

    /// A share of the device's multiprocessors; see [`DeviceRuntime::compute_share`].
    pub(super) fn compute_share(&self, percent: u32, leaving: u32) -> Result<ComputeShare> {
        self.home.compute_share(percent, leaving)
    }

    /// Ordinal of the device whose multiprocessors the engines share; None on the CPU.
    pub(super) fn partitioned_device(&self) -> Option<i32> {
        self.home.measured()
    }

    /// Key of a measurement on that many multiprocessors; None on a device that is not measured.
    pub(super) fn saturation_key(&self, multiprocessors: u32) -> Option<budget::Key> {
        let device = self.home.measured()?;
        let model = self.model.fingerprint();
        Some(budget::Key { device, multiprocessors, model, geometry: self.geometry })
    }

    /// Limits that every sequence on this cache has to respect.
    pub(super) fn bounds(&self) -> Bounds {
        let info = self.model.info();
        Bounds {
            vocab_size: info.vocab_size,
            max_context: info.max_context_tokens,
            cache_tokens: self.n_blocks as u64 * self.block_tokens() as u64,
        }
    }

    /// Tokens per KV block.
    pub(super) fn block_tokens(&self) -> usize {
        self.geometry.block_tokens as usize
    }

    /// The model's end-of-sequence ids.
    pub(super) fn eos_ids(&self) -> &[u32] {
        self.model.eos_ids()
    }

    /// An empty block table.
    pub(super) fn table(&self) -> BlockTable {
        self.kv.table()
    }

    // ---- prefix cache ----

    /// An empty chain of block hashes under the sequence's cache salt.
    pub(super) fn hash_chain(&self, snapshot: &Snapshot) -> HashChain {
        HashChain::new(snapshot.cache_salt, self.block_tokens() as u32)
    }

    /// Whether blocks of the sequence may be shared through the prefix index.
    pub(super) fn is_shareable(&self, snapshot: &Snapshot) -> bool {
        let own = self.prefix_cache && !snapshot.converted;
        own && snapshot.prompts.last().is_none_or(|p| p.1 <= self.shareable_up_to)
    }

    /// Number of leading tokens of the sequence whose KV is computed and may be shared.
    pub(super) fn shareable_tokens(&self, snapshot: &Snapshot) -> usize {
        if self.is_shareable(snapshot) { snapshot.computed.min(self.shareable_up_to) as usize } else { 0 }
    }

    /// Number of prompt tokens whose KV is in the prefix cache.
    pub(super) fn cached_prefix(&self, snapshot: &Snapshot) -> usize {
        if !self.is_shareable(snapshot) {
            return 0;
        }
        let mut chain = self.hash_chain(snapshot);
        chain.extend(&snapshot.tokens[..snapshot.tokens.len() - 1]);
        self.kv.cached_blocks(chain.hashes()) * self.block_tokens()
    }

    // ---- handles ----

    /// Imports a ticket or an image. If a queue is given, a KV_READY event follows on it. The handle may be submitted at once,
    /// before that event.
    pub fn import(self: &Arc<Self>, queue: Option<&Arc<Queue>>, data: &[u8], user_tag: u64) -> Result<KvId> {
        let reservation = queue.map(|q| q.reserve()).transpose()?;
        let announce = move |kv: KvId, outcome: Result<()>| {
            if let Some(reservation) = reservation {
                let status = outcome.err().map(|e| e.status);
                reservation.finish(Event { kv: kv.0, status, ..Event::new(EventKind::KvReady, user_tag, 0) });
            }
        };
        self.node.import(data, announce)
    }

    /// Listens for peers on other machines that import from this cache; see [`Node::listen`].
    pub fn listen(&self, address: &str, advertise: Option<&str>, encryption: Encryption) -> Result<u16> {
        if !self.served {
            crate::bail!(InvalidArgument, "the cache was created without a secret, so no peer could import from it");
        }
        self.node.listen(address, advertise, encryption)
    }

    /// The cache's node in the network: tickets, listening and pairing.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Ends every handle and refuses new ones. Engines that still run keep the memory alive until they end.
    pub fn close(&self) {
        self.node.close();
    }
}
