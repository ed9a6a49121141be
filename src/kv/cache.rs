//! The cache: creation, closing, and questions about it as a whole (block counts, statistics, audit).

use std::ops::Deref;
use std::sync::atomic::AtomicU32;
use std::thread::JoinHandle;
use std::time::Duration;

use super::format::{CacheIdentity, Keys, Layout, TransportKeys};
use super::handles::{Audit, Body, CacheConfig, CacheShared, CacheState, End, audit, check, run_leases};
use super::pool::{
    BlockHash, BlockTable, Conversion, EventLog, EventRead, IndexSnapshot, Journal, Owner, Shards, Waker, snapshot,
};
use crate::backend::{BlockStore, KvGeometry};
use crate::bail;
use crate::error::Result;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::{Arc, MODELLED, Mutex, PoisonError};
use crate::sys::random_bytes;

/// Counters of a cache, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Number of blocks in the pool.
    pub blocks_total: usize,
    /// Blocks that nobody holds.
    pub blocks_free: usize,
    /// Blocks that can be allocated now: free ones, and those that only the prefix index holds.
    pub blocks_available: usize,
    /// Handles whose KV is in this cache or is being computed into it.
    pub exports_open: usize,
    /// Handles whose KV is still being imported.
    pub imports_open: usize,
    /// KV bytes copied into the cache, from images and by pulls. Moves within the cache do not count.
    pub bytes_in: u64,
    /// KV bytes copied out of the cache, into images and by peers' pulls. Moves within the cache do not count.
    pub bytes_out: u64,
    /// Bytes pulled by ticket while the exporter was still computing the prompt.
    pub bytes_hidden: u64,
    /// Bytes pulled by ticket after the exporter had computed the prompt.
    pub bytes_exposed: u64,
    /// Nanoseconds between the exporter finishing the prompt and the last of its KV arriving, summed over all pulls.
    pub exposed_ns: u64,
    /// The part of `exposed_ns` that the last pull added.
    pub exposed_ns_last: u64,
    /// Number of imports by ticket that succeeded.
    pub imports: u64,
    /// Number of imports by ticket that failed.
    pub imports_failed: u64,
    /// Nanoseconds from receiving a ticket to asking its exporter in another process for the KV, of the last pull.
    pub ask_ns_last: u64,
}

/// Blocks of a pool, counted at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Blocks in the pool.
    pub total: usize,
    /// Blocks that can be allocated now, `cached` ones among them.
    pub available: usize,
    /// Blocks that only the prefix index holds.
    pub cached: usize,
}

/// A paged KV cache: one block pool, its prefix index and the handles exported from it.
///
/// Dropping it closes it. Tables may outlive it; their blocks return to the pool all the same.
pub struct Cache {
    shared: Arc<CacheShared>,
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
        let mut state = CacheState::new(blocks, NEXT_NONCE.fetch_add(1, Relaxed), random_bytes()?);
        let events = match config.events_kept {
            0 => None,
            kept => Some(Arc::new(EventLog::new(kept)?)),
        };
        state.pool.blocks.journal = events.clone().map(|log| Journal::new(log, n_blocks));
        let shared = Arc::new(CacheShared::new(identity, config, Keys::new(&secret), shards, layout, state));
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

    /// Number of blocks in the pool.
    pub fn total_blocks(&self) -> usize {
        self.shared.lock().pool.blocks.refs.len()
    }

    /// Number of blocks that nobody holds.
    pub fn free_blocks(&self) -> usize {
        self.shared.lock().pool.blocks.free.len()
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
        let imports = state.slots.live().filter(|(_, body)| matches!(body, Body::Importing { .. })).count();
        let exports =
            state.slots.live().filter(|(_, body)| matches!(body, Body::Ready(_) | Body::StreamingExport(_))).count();
        CacheStats {
            blocks_total: state.pool.blocks.refs.len(),
            blocks_free: state.pool.blocks.free.len(),
            blocks_available: state.pool.blocks.available(),
            exports_open: exports,
            imports_open: imports,
            bytes_in: self.shared.bytes_in.load(Relaxed),
            bytes_out: self.shared.bytes_out.load(Relaxed),
            bytes_hidden: self.shared.bytes_hidden.load(Relaxed),
            bytes_exposed: self.shared.bytes_exposed.load(Relaxed),
            exposed_ns: self.shared.exposed_ns.load(Relaxed),
            exposed_ns_last: self.shared.exposed_ns_last.load(Relaxed),
            imports: self.shared.imports.load(Relaxed),
            imports_failed: self.shared.imports_failed.load(Relaxed),
            ask_ns_last: self.shared.ask_ns_last.load(Relaxed),
        }
    }

    /// Reads the events of the prefix index; see [`EventLog::read`]. UNSUPPORTED if the cache keeps none.
    pub fn read_events(&self, from: u64, most: usize, timeout: Option<Duration>) -> Result<EventRead> {
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

    /// Random number that tickets carry; [`Cache::bump_epoch`] replaces it to invalidate them.
    pub fn epoch(&self) -> [u8; 16] {
        self.shared.lock().epoch
    }

    /// Invalidates all tickets issued so far: their use is EXPIRED, and imports in progress fail when they complete. Handles
    /// and block tables of this process stay valid.
    pub fn bump_epoch(&self) -> Result<()> {
        let epoch = random_bytes()?;
        self.shared.with(|state| state.epoch = epoch);
        Ok(())
    }

    /// Ends every open handle as if its lease were over, and empties the prefix index. For an engine that goes to sleep,
    /// whose KV memory is about to be freed.
    pub fn end_exports(&self) {
        self.shared.with(end_everything);
    }

    /// Closes the cache: ends every handle, empties the prefix index and stops the lease timer. Later calls on handles are
    /// SHUTDOWN. Idempotent.
    pub fn close(&self) {
        self.shared.with(|state| {
            state.pool.closed = true;
            end_everything(state);
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

    /// Counts a successful pull: its bytes before and after the exporter had computed the prompt, and the time between that
    /// moment and the last byte.
    pub(crate) fn count_streamed(&self, hidden: u64, exposed: u64, exposed_ns: u64) {
        let shared = &self.shared;
        shared.bytes_hidden.fetch_add(hidden, Relaxed);
        shared.bytes_exposed.fetch_add(exposed, Relaxed);
        shared.exposed_ns.fetch_add(exposed_ns, Relaxed);
        shared.exposed_ns_last.store(exposed_ns, Relaxed);
        shared.imports.fetch_add(1, Relaxed);
    }

    /// Counts KV bytes that went out to a peer.
    pub(crate) fn count_sent(&self, bytes: usize) {
        self.shared.bytes_out.fetch_add(bytes as u64, Relaxed);
    }

    /// Number of blocks at the start of `chain` that the prefix index has.
    pub(crate) fn cached_blocks(&self, chain: &[BlockHash]) -> usize {
        let state = self.shared.lock();
        chain.iter().take_while(|hash| state.pool.blocks.index.get(hash).is_some()).count()
    }

    /// Corrects the lengths, tags, MAC and checksum of an image or ticket that a fuzzer has mutated.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn reseal(&self, data: &mut [u8]) {
        super::format::reseal(&self.shared.keys, data);
    }

    /// Whether KV of layout `from` can be imported, as it is or by conversion.
    pub(crate) fn converts(&self, from: &KvGeometry) -> bool {
        let shared = &self.shared;
        *from == shared.geometry || !shared.config.no_convert && Conversion::new(from, &shared.geometry).is_ok()
    }

    /// Records the nanoseconds between receiving a ticket and asking its exporter for the KV.
    pub(crate) fn count_asked(&self, ns: u64) {
        self.shared.ask_ns_last.store(ns, Relaxed);
    }

    /// Counts an import by ticket that failed.
    pub(crate) fn count_failed_import(&self) {
        self.shared.imports_failed.fetch_add(1, Relaxed);
    }
}

fn end_everything(state: &mut CacheState) {
    let live: Vec<u32> = state.slots.live().map(|(slot, _)| slot).collect();
    live.into_iter().for_each(|slot| state.end_and_free(slot, End::LeaseOver));
    state.pool.blocks.evict_all();
}

/// Gives a cache every method of the state that it shares with its handles and tables.
impl Deref for Cache {
    type Target = Arc<CacheShared>;

    fn deref(&self) -> &Arc<CacheShared> {
        &self.shared
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.close();
    }
}
