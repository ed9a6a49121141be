//! The cache itself: creation and closing, the lock, and what engines and hosts ask about it as a whole.

use std::ops::Deref;
use std::sync::atomic::AtomicU32;
use std::thread::JoinHandle;

use super::format::{CacheIdentity, Keys, Layout, TransportKeys};
use super::handles::{Audit, Body, CacheConfig, CacheShared, CacheState, End, audit, check, run_leases};
use super::pool::{BlockHash, BlockTable, Conversion, Owner, Waker};
use crate::backend::{BlockStore, KvGeometry};
use crate::bail;
use crate::error::Result;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::{Arc, MODELLED, Mutex, PoisonError};
use crate::sys::random_bytes;

/// Counters of a cache, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    pub blocks_total: usize,
    pub blocks_free: usize,
    /// Free, or held by the prefix index alone.
    pub blocks_available: usize,
    pub exports_open: usize,
    pub imports_open: usize,
    /// KV bytes that were copied in and out; moves within the cache are none.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Bytes pulled by ticket while the exporter was still computing the prompt.
    pub bytes_hidden: u64,
    /// Bytes pulled by ticket after the exporter had computed the prompt.
    pub bytes_exposed: u64,
    /// From the exporter being done until everything was here: of all pulls, and of the last.
    pub exposed_ns: u64,
    pub exposed_ns_last: u64,
    /// Tickets whose KV came, and those whose did not.
    pub imports: u64,
    pub imports_failed: u64,
    /// From a ticket being given until its exporter, in another process, was asked, of the last pull.
    pub ask_ns_last: u64,
}

/// A paged KV cache: one block pool, its prefix index and the handles exported from it.
///
/// Dropping it closes it. Tables may outlive it; their blocks return to the pool all the same.
pub struct Cache {
    shared: Arc<CacheShared>,
    timer: Mutex<Option<JoinHandle<()>>>,
}

/// Handles of two caches of one process never look alike (until a million caches later).
static NEXT_NONCE: AtomicU32 = AtomicU32::new(1);

impl Cache {
    /// A cache over the memory of `store`, with a lease timer of its own.
    pub fn new(identity: CacheIdentity, store: Arc<dyn BlockStore>, config: CacheConfig) -> Result<Arc<Cache>> {
        let geometry = *store.geometry();
        geometry.validate().map_err(|error| error.context("KV pool"))?;
        let blocks = match u32::try_from(store.n_blocks()) {
            Ok(n) if n > 0 && n < u32::MAX => n,
            _ => bail!(InvalidArgument, "KV pool: expected 1 to {} blocks, found {}", u32::MAX - 1, store.n_blocks()),
        };
        let layout = Layout::new(geometry, &config.layer_kinds).map_err(|error| error.context("KV cache"))?;
        let secret = config.secret.map_or_else(random_bytes, Ok)?;
        let state = CacheState::new(blocks, NEXT_NONCE.fetch_add(1, Relaxed), random_bytes()?);
        let shared = Arc::new(CacheShared::new(identity, config, Keys::new(&secret), store, layout, state));
        let timed = shared.clone();
        let run = move || run_leases(&timed);
        let timer = if MODELLED { None } else { Some(crate::sys::spawn("cleave-lease", run)?) };
        Ok(Arc::new(Cache { shared, timer: Mutex::new(timer) }))
    }

    pub fn identity(&self) -> &CacheIdentity {
        &self.shared.identity
    }

    pub fn geometry(&self) -> &KvGeometry {
        &self.shared.geometry
    }

    /// The geometry, and what each layer keeps.
    pub(crate) fn layout(&self) -> &Layout {
        &self.shared.layout
    }

    pub fn store(&self) -> &dyn BlockStore {
        &*self.shared.store
    }

    pub(crate) fn store_handle(&self) -> &Arc<dyn BlockStore> {
        &self.shared.store
    }

    /// An empty block table, owned by a request.
    pub fn table(&self) -> BlockTable {
        self.shared.table(Owner::Request)
    }

    pub fn total_blocks(&self) -> usize {
        self.shared.lock().pool.blocks.refs.len()
    }

    /// Blocks that nobody holds.
    pub fn free_blocks(&self) -> usize {
        self.shared.lock().pool.blocks.free.len()
    }

    /// Blocks that can be had now: free, or held by the prefix index alone.
    pub fn available_blocks(&self) -> usize {
        self.shared.lock().pool.blocks.available()
    }

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

    /// Calls `waker` once as soon as `needed` blocks are available, in place of what was asked for the same waker
    /// before. False, and nothing is registered, if they are available now: try again. Goes on after the cache is
    /// closed, since sequences do.
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

    /// Every block by the kinds of owners it has.
    pub fn audit(&self) -> Audit {
        audit(&self.shared.lock())
    }

    /// Every invariant of the bookkeeping; the first one that does not hold, in words. For tests.
    pub fn check(&self) -> std::result::Result<(), String> {
        check(&self.shared.lock())
    }

    /// Random number of this cache's current life. Tickets carry it.
    pub fn epoch(&self) -> [u8; 16] {
        self.shared.lock().epoch
    }

    /// Begins a new life: tickets issued before are EXPIRED, imports on their way fail when they land. Handles
    /// and tables of this process stay what they are.
    pub fn bump_epoch(&self) -> Result<()> {
        let epoch = random_bytes()?;
        self.shared.with(|state| state.epoch = epoch);
        Ok(())
    }

    /// Ends every open handle as if its lease were over and empties the prefix index: the KV itself is about to
    /// go away (sleep).
    pub fn end_exports(&self) {
        self.shared.with(end_everything);
    }

    /// Ends the cache: every handle, the prefix index and the timer. Later calls on handles
    /// are SHUTDOWN. Idempotent.
    pub fn close(&self) {
        self.shared.with(|state| {
            state.pool.closed = true;
            end_everything(state);
            let waiting = state.pool.short.drain(..).map(|(_, waker)| waker);
            state.pool.fire.extend(waiting);
        });
        self.shared.timer.notify_all();
        let timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(timer) = timer.filter(|timer| timer.thread().id() != std::thread::current().id()) {
            let _ = timer.join();
        }
    }

    pub fn is_closed(&self) -> bool {
        self.shared.lock().pool.closed
    }

    /// Keys that processes with the same secret share, for the connections between them.
    pub(crate) fn transport_keys(&self) -> TransportKeys {
        self.shared.keys.transport
    }

    /// Counts KV bytes that came in before and after the exporter had computed the last of them.
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

    /// How many blocks of a chain the prefix index has, from its first on.
    pub(crate) fn cached_blocks(&self, chain: &[BlockHash]) -> usize {
        let state = self.shared.lock();
        chain.iter().take_while(|hash| state.pool.blocks.index.get(hash).is_some()).count()
    }

    /// Puts the lengths, tags, MAC and checksum of an image or ticket right after a mutation.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn reseal(&self, data: &mut [u8]) {
        super::format::reseal(&self.shared.keys, data);
    }

    /// Can KV of that layout be taken in?
    pub(crate) fn converts(&self, from: &KvGeometry) -> bool {
        let shared = &self.shared;
        *from == shared.geometry || !shared.config.no_convert && Conversion::new(from, &shared.geometry).is_ok()
    }

    /// The exporter was asked this long after its ticket was given.
    pub(crate) fn count_asked(&self, ns: u64) {
        self.shared.ask_ns_last.store(ns, Relaxed);
    }

    pub(crate) fn count_failed_import(&self) {
        self.shared.imports_failed.fetch_add(1, Relaxed);
    }
}

fn end_everything(state: &mut CacheState) {
    let live: Vec<u32> = state.slots.live().map(|(slot, _)| slot).collect();
    live.into_iter().for_each(|slot| state.end_and_free(slot, End::LeaseOver));
    state.pool.blocks.evict_all();
}

/// A cache has every method of the state that it shares with its handles and tables.
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
