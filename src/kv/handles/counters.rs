//! Counters of a cache, for metrics.

use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::Relaxed;

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

/// The part of [`CacheStats`] that is counted as it happens, without the cache's lock.
pub(crate) struct Counters {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    bytes_hidden: AtomicU64,
    bytes_exposed: AtomicU64,
    exposed_ns: AtomicU64,
    exposed_ns_last: AtomicU64,
    imports: AtomicU64,
    imports_failed: AtomicU64,
    ask_ns_last: AtomicU64,
}

impl Counters {
    pub(super) fn new() -> Counters {
        let zero = || AtomicU64::new(0);
        Counters {
            bytes_in: zero(),
            bytes_out: zero(),
            bytes_hidden: zero(),
            bytes_exposed: zero(),
            exposed_ns: zero(),
            exposed_ns_last: zero(),
            imports: zero(),
            imports_failed: zero(),
            ask_ns_last: zero(),
        }
    }

    /// KV bytes were copied into the cache.
    pub fn received(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Relaxed);
    }

    /// KV bytes were copied out of the cache.
    pub fn sent(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
    }

    /// A peer was asked for KV, so many nanoseconds after its ticket came.
    pub fn asked(&self, ns: u64) {
        self.ask_ns_last.store(ns, Relaxed);
    }

    /// An import by ticket succeeded: bytes that came before and after the exporter had computed the prompt, and the
    /// nanoseconds between that moment and the last byte.
    pub fn pulled(&self, hidden: u64, exposed: u64, exposed_ns: u64) {
        self.bytes_hidden.fetch_add(hidden, Relaxed);
        self.bytes_exposed.fetch_add(exposed, Relaxed);
        self.exposed_ns.fetch_add(exposed_ns, Relaxed);
        self.exposed_ns_last.store(exposed_ns, Relaxed);
        self.imports.fetch_add(1, Relaxed);
    }

    /// An import by ticket failed.
    pub fn import_failed(&self) {
        self.imports_failed.fetch_add(1, Relaxed);
    }

    /// Adds what was counted to the numbers of blocks and handles.
    pub(in crate::kv) fn with(&self, state: CacheStats) -> CacheStats {
        CacheStats {
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            bytes_hidden: self.bytes_hidden.load(Relaxed),
            bytes_exposed: self.bytes_exposed.load(Relaxed),
            exposed_ns: self.exposed_ns.load(Relaxed),
            exposed_ns_last: self.exposed_ns_last.load(Relaxed),
            imports: self.imports.load(Relaxed),
            imports_failed: self.imports_failed.load(Relaxed),
            ask_ns_last: self.ask_ns_last.load(Relaxed),
            ..state
        }
    }
}
