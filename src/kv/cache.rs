//! The cache: creation, closing, and questions about it as a whole (block counts, statistics, audit).

use std::sync::atomic::AtomicU32;
use std::thread::JoinHandle;
use std::time::Duration;

use super::format::{CacheIdentity, Keys, Layout, TransportKeys};
use super::handles::{
    Audit, BlockCounts, Body, CacheConfig, CacheShared, CacheState, CacheStats, Counters, Handles, Images, Tickets,
    Transfers, audit, check, run_leases,
};
use super::pool::{
    BlockHash, BlockTable, Conversion, EventBatch, EventLog, IndexSnapshot, Journal, Owner, Shards, Waker, snapshot,
};
use crate::backend::{BlockStore, KvGeometry};
use crate::bail;
use crate::error::Result;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::{Arc, MODELLED, Mutex, PoisonError};
use crate::sys::random_bytes;

/// A paged KV cache: one block pool, its prefix index and the handles exported from it.
///
/// Dropping it closes it. Tables may outlive it; their blocks return to the pool all the same.
pub struct Cache {
    pub(super) shared: Arc<CacheShared>,
    /// Events of the prefix index; None if none are kept.
    events: Option<Arc<EventLog>>,
    timer: Mutex<Option<JoinHandle<()>>>,
}

/// Nonce of the next cache. It is part of every handle, so that handles of two caches in one process differ; it wraps after
/// 2^20 caches.
static NEXT_NONCE: AtomicU32 = AtomicU32::new(1);

impl Cache {
    /// Makes a cache over the blocks of `shards` and starts the thread that ends expired leases.
    pub fn new(identity: CacheIdentity, shards: Shards, config: CacheConfig) -> Result<Arc<Cache>> {
        let (geometry, n_blocks) = (*shards.geometry(), shards.store().n_blocks());
        let blocks = match u32::try_from(n_blocks) {
            Ok(n) if n > 0 && n < u32::MAX => n,
            _ => bail!(InvalidArgument, "KV pool: expected 1 to {} blocks, found {n_blocks}", u32::MAX - 1),
        };
        let layout = Layout::new(geometry, &config.layer_kinds).map_err(|error| error.context("KV cache"))?;
        let secret = config.secret.map_or_else(random_bytes, Ok)?;
        let mut state = CacheState::new(blocks, NEXT_NONCE.fetch_add(1, Relaxed));
        let events = match config.events_kept {
            0 => None,
            kept => Some(Arc::new(EventLog::new(kept)?)),
        };
        state.pool.blocks.journal = events.clone().map(|log| Journal::new(log, n_blocks));
        let shared =
            Arc::new(CacheShared::new(identity, random_bytes()?, config, Keys::new(&secret), shards, layout, state));
        let timed = shared.clone();
        let run = move || run_leases(&timed);
        let timer = if MODELLED { None } else { Some(crate::sys::spawn("cleave-lease", run)?) };
        Ok(Arc::new(Cache { shared, events, timer: Mutex::new(timer) }))
    }

    /// Model and tokenizer whose KV this cache holds.
    pub fn identity(&self) -> &CacheIdentity {
        &self.shared.identity
    }

    /// Shape of a block.
    pub fn geometry(&self) -> &KvGeometry {
        &self.shared.geometry
    }

    /// Shape of a block, and the kind of attention of each layer.
    pub(crate) fn layout(&self) -> &Layout {
        &self.shared.layout
    }

    /// Memory that holds the blocks.
    pub fn store(&self) -> &dyn BlockStore {
        &**self.shared.shards.store()
    }

    pub(crate) fn store_handle(&self) -> &Arc<dyn BlockStore> {
        self.shared.shards.store()
    }

    /// An empty block table, owned by a request.
    pub fn table(&self) -> BlockTable {
        self.shared.table(Owner::Request)
    }

    /// Its handles: export, consumption, leases.
    pub fn handles(&self) -> Handles<'_> {
        Handles::new(&self.shared)
    }

    /// The images of its handles.
    pub fn images(&self) -> Images<'_> {
        Images::new(&self.shared)
    }

    /// The tickets of its handles, and its address.
    pub(crate) fn tickets(&self) -> Tickets<'_> {
        Tickets::new(&self.shared)
    }

    /// Transfers into and out of it.
    pub(crate) fn transfers(&self) -> Transfers<'_> {
        Transfers::new(&self.shared)
    }

    /// Counters of what has been transferred.
    pub(crate) fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Number of blocks in the pool.
    pub fn total_blocks(&self) -> usize {
        self.shared.lock().pool.blocks.refs.len()
    }

    /// Number of blocks that can be allocated now: free ones, and those that only the prefix index holds.
    pub fn available_blocks(&self) -> usize {
        self.shared.lock().pool.blocks.available()
    }

    /// Counts the pool's blocks.
    pub fn block_counts(&self) -> BlockCounts {
        let state = self.shared.lock();
        let blocks = &state.pool.blocks;
        BlockCounts { total: blocks.refs.len(), available: blocks.available(), cached: blocks.index.idle() }
    }

    /// Current counters of this cache.
    pub fn stats(&self) -> CacheStats {
        let state = self.shared.lock();
        let count = |kind: fn(&Body) -> bool| state.handles.live().filter(|(_, body)| kind(body)).count();
        self.shared.counters.with(CacheStats {
            blocks_total: state.pool.blocks.refs.len(),
            blocks_free: state.pool.blocks.free.len(),
            blocks_available: state.pool.blocks.available(),
            exports_open: count(|body| matches!(body, Body::Ready(_) | Body::StreamingExport(_))),
            imports_open: count(|body| matches!(body, Body::Importing(_))),
            ..CacheStats::default()
        })
    }

    /// Reads the events of the prefix index; see [`EventLog::read`]. UNSUPPORTED if the cache keeps none.
    pub fn read_events(&self, from: u64, most: usize, timeout: Option<Duration>) -> Result<EventBatch> {
        self.log()?.read(from, most, timeout)
    }

    /// The blocks of the prefix index, and the number of the event to continue from. UNSUPPORTED if the cache keeps no events.
    pub fn index_snapshot(&self) -> Result<IndexSnapshot> {
        let log = self.log()?;
        snapshot(log, self.shared.shards.store().n_blocks(), |range, seen| {
            let state = self.shared.lock();
            seen.extend(state.pool.blocks.journal.iter().flat_map(|journal| journal.indexed(range.clone())).cloned());
            log.end()
        })
    }

    fn log(&self) -> Result<&EventLog> {
        match &self.events {
            Some(log) => Ok(log),
            None => bail!(Unsupported, "the cache keeps no events: it was created with events_kept 0"),
        }
    }

    /// Arranges one call of `waker` as soon as `needed` blocks are available; an earlier request with the same waker is
    /// replaced. Returns false, and registers nothing, if that many are available now. Works on a closed cache too, because
    /// sequences continue after it closes.
    pub fn wake_when_free(&self, needed: usize, waker: &Waker) -> bool {
        self.shared.with(|state| {
            state.pool.short.retain(|(_, known)| !Arc::ptr_eq(known, waker));
            let wait = state.pool.blocks.available() < needed;
            if wait {
                state.pool.short.push((needed, waker.clone()));
            }
            wait
        })
    }

    /// Counts the blocks by kind of owner.
    pub fn audit(&self) -> Audit {
        audit(&self.shared.lock())
    }

    /// Checks every invariant of the bookkeeping; the error describes the first that does not hold. For tests.
    pub fn check(&self) -> std::result::Result<(), String> {
        check(&self.shared.lock())
    }

    /// Random number that the cache's tickets carry, so that another cache at the same endpoint refuses them.
    pub fn epoch(&self) -> [u8; 16] {
        self.shared.epoch
    }

    /// Closes the cache: ends every handle, empties the prefix index and stops the lease timer. Later calls on handles are
    /// SHUTDOWN. Idempotent.
    pub fn close(&self) {
        self.shared.with(|state| {
            state.pool.closed = true;
            state.end_all();
            let waiting = state.pool.short.drain(..).map(|(_, waker)| waker);
            state.pool.fire.extend(waiting);
        });
        self.shared.timer.notify_all();
        self.events.iter().for_each(|log| log.close());
        let timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(timer) = timer.filter(|timer| timer.thread().id() != std::thread::current().id()) {
            let _ = timer.join();
        }
    }

    /// True once [`Cache::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.shared.lock().pool.closed
    }

    /// Keys that processes with the same secret share, for the connections between them.
    pub(crate) fn transport_keys(&self) -> TransportKeys {
        self.shared.keys.transport
    }

    /// Number of blocks at the start of `chain` that the prefix index has.
    pub(crate) fn cached_blocks(&self, chain: &[BlockHash]) -> usize {
        let state = self.shared.lock();
        chain.iter().take_while(|hash| state.pool.blocks.index.get(hash).is_some()).count()
    }

    /// Whether KV of layout `from` can be imported, as it is or by conversion.
    pub(crate) fn converts(&self, from: &KvGeometry) -> bool {
        let shared = &self.shared;
        *from == shared.geometry || !shared.config.no_convert && Conversion::new(from, &shared.geometry).is_ok()
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.close();
    }
}
