//! The core of a cache, which its tables, handles and timer share: the lock, the keys, the block memory and the counters.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::counters::Counters;
use super::endpoints::Endpoints;
use super::state::CacheState;
use crate::backend::{BlockStore, KvGeometry};
use crate::kv::format::{CacheIdentity, Keys, LayerKind, Layout, Own};
use crate::kv::pool::{BlockTable, Owner, PoolOwner, PoolState, Shards, Waker};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// How a cache treats leases, secrets, prefix sharing and foreign layouts.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Time after which a handle ends unless it is renewed, consumed or released before.
    pub lease: Duration,
    /// Key that authenticates images and tickets: whoever knows it can import from this cache, and can forge. None: a random
    /// key, so that only this cache accepts what it exported.
    pub secret: Option<[u8; 32]>,
    /// Greatest length in tokens of imported sequences that use and feed the prefix index. It is limited where KV depends on
    /// more than the preceding tokens: with a rope that depends on the sequence's length, only sequences up to its threshold
    /// can share.
    pub share_up_to_tokens: u32,
    /// Refuses KV of another layout (block size, dtype, shards) instead of converting it.
    pub no_convert: bool,
    /// Kind of each layer; empty: full attention in all of them.
    pub layer_kinds: Vec<LayerKind>,
    /// Number of events about the prefix index that are kept for readers; 0: none are recorded.
    pub events_kept: usize,
}

impl Default for CacheConfig {
    fn default() -> Self {
        CacheConfig {
            lease: Duration::from_secs(30),
            secret: None,
            share_up_to_tokens: u32::MAX,
            no_convert: false,
            layer_kinds: Vec::new(),
            events_kept: 0,
        }
    }
}

/// State shared by tables, handles, the timer and the cache. It lives until the last table is dropped.
pub(in crate::kv) struct CacheShared {
    pub identity: CacheIdentity,
    /// Random number that tickets carry, so that another cache at the same endpoint refuses them.
    pub epoch: [u8; 16],
    pub config: CacheConfig,
    pub keys: Keys,
    pub shards: Shards,
    pub geometry: KvGeometry,
    /// Shape of a block and the kind of attention of each layer, as tickets and images state them.
    pub layout: Layout,
    state: Mutex<CacheState>,
    /// Wakes the lease timer.
    pub timer: Condvar,
    /// Signalled when a streaming export has more computed tokens, is complete or has failed.
    pub progress: Condvar,
    /// Endpoints that tickets and addresses name.
    pub endpoints: Endpoints,
    pub counters: Counters,
}

/// Calls wakers, without the lock. They are foreign code: a panic in one must not keep the others from being called.
pub(in crate::kv) fn wake(due: Vec<Waker>) {
    for waker in due {
        let _ = catch_unwind(AssertUnwindSafe(|| waker()));
    }
}

impl CacheShared {
    pub fn new(
        identity: CacheIdentity,
        epoch: [u8; 16],
        config: CacheConfig,
        keys: Keys,
        shards: Shards,
        layout: Layout,
        state: CacheState,
    ) -> CacheShared {
        CacheShared {
            identity,
            epoch,
            config,
            keys,
            shards,
            geometry: layout.geometry,
            layout,
            state: Mutex::new(state),
            timer: Condvar::new(),
            progress: Condvar::new(),
            endpoints: Endpoints::none(),
            counters: Counters::new(),
        }
    }

    /// This cache, as tickets and images are written for it and checked against it.
    pub fn own(&self) -> Own<'_> {
        Own { identity: &self.identity, layout: &self.layout, no_convert: self.config.no_convert }
    }

    /// Locks the state. A poisoned lock is taken all the same: the panic was reported where it was caught, and the bookkeeping
    /// must go on.
    pub fn lock(&self) -> MutexGuard<'_, CacheState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` under the lock, then releases it and calls the wakers that `f` made due.
    pub fn with<R>(&self, f: impl FnOnce(&mut CacheState) -> R) -> R {
        let mut state = self.lock();
        let result = f(&mut state);
        let due = state.pool.due();
        let poke = state.handles.take_poke();
        drop(state);
        if poke {
            self.timer.notify_one();
        }
        wake(due);
        result
    }

    /// An empty block table.
    pub fn table(self: &Arc<Self>, owner: Owner) -> BlockTable {
        let key = self.with(|state| state.pool.add_table(owner, Vec::new()));
        BlockTable::new(self.clone(), key, Vec::new())
    }
}

impl PoolOwner for CacheShared {
    fn with_pool(&self, f: &mut dyn FnMut(&mut PoolState)) {
        self.with(|state| f(&mut state.pool));
    }

    fn block_tokens(&self) -> u32 {
        self.geometry.block_tokens
    }

    fn block_store(&self) -> &dyn BlockStore {
        &**self.shards.store()
    }

    fn has_journal(&self) -> bool {
        self.config.events_kept > 0
    }
}
