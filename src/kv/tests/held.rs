//! A block store that a test can hold up.

use super::store::MemoryStore;
use super::{BlockId, BlockStore, KvGeometry};

/// A store of which nothing is read while a test holds it.
pub struct HeldStore {
    store: MemoryStore,
    hold: std::sync::RwLock<()>,
}

impl HeldStore {
    pub fn new(store: MemoryStore) -> HeldStore {
        HeldStore { store, hold: std::sync::RwLock::new(()) }
    }

    pub fn hold(&self) -> std::sync::RwLockWriteGuard<'_, ()> {
        self.hold.write().unwrap()
    }
}

impl BlockStore for HeldStore {
    fn geometry(&self) -> &KvGeometry {
        self.store.geometry()
    }

    fn n_blocks(&self) -> usize {
        self.store.n_blocks()
    }

    fn read(&self, id: BlockId, offset: usize, out: &mut [u8]) -> crate::error::Result<()> {
        let _held = self.hold.read().unwrap();
        self.store.read(id, offset, out)
    }

    fn write(&self, id: BlockId, offset: usize, data: &[u8]) -> crate::error::Result<()> {
        self.store.write(id, offset, data)
    }

    fn copy(&self, from: BlockId, to: BlockId) -> crate::error::Result<()> {
        self.store.copy(from, to)
    }
}
