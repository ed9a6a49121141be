//! The transport between caches of one process: a look-up by epoch, then one copy per block.

use once_cell::sync::OnceCell;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::source::{Destination, Progress, TransferSource, Wanted};
use crate::bail;
use crate::error::Result;
use crate::kv::Cache;
use crate::kv::TransferHold;
use crate::kv::format::ProcessId;
use crate::sys::bytes::copy;

/// Caches that tickets of this process can name. Keeps none of them alive.
static CACHES: Mutex<Vec<Weak<Cache>>> = Mutex::new(Vec::new());

/// How often a wait for more blocks checks whether they are still wanted.
const LOOK: Duration = Duration::from_millis(50);

/// The name of this process in tickets.
pub(super) fn process() -> Result<ProcessId> {
    static NONCE: OnceCell<[u8; 16]> = OnceCell::new();
    Ok(ProcessId { pid: std::process::id(), nonce: *NONCE.get_or_try_init(crate::sys::random_bytes)? })
}

/// Adds a cache to those that tickets of this process can name.
pub(super) fn register(cache: &Arc<Cache>) {
    let mut caches = CACHES.lock().unwrap_or_else(PoisonError::into_inner);
    caches.retain(|known| known.strong_count() > 0);
    if !caches.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(cache))) {
        caches.push(Arc::downgrade(cache));
    }
}

pub(super) fn find(epoch: &[u8; 16]) -> Result<Arc<Cache>> {
    // Collected first: the last reference to a cache must not be dropped under the lock.
    let caches = CACHES.lock().unwrap_or_else(PoisonError::into_inner);
    let alive: Vec<Arc<Cache>> = caches.iter().filter_map(Weak::upgrade).collect();
    drop(caches);
    // A closed cache counts as gone, even if the host still holds it.
    match alive.into_iter().find(|cache| cache.epoch() == *epoch && !cache.is_closed()) {
        Some(cache) => Ok(cache),
        None => bail!(Expired, "KV ticket: the exporting cache is gone or began a new epoch"),
    }
}

/// A transfer out of a cache of this process.
pub(super) struct LocalTransfer {
    pub hold: TransferHold,
}

impl TransferSource for LocalTransfer {
    fn more(&mut self, wanted: Wanted<'_>) -> Result<Progress> {
        wanted.check()?;
        self.hold.more(self.hold.blocks().len(), LOOK)?;
        let whole = self.hold.whole().map(|snapshot| (**snapshot).clone());
        Ok(Progress { available: self.hold.blocks().len(), whole })
    }

    fn fetch(&mut self, blocks: Range<usize>, into: &dyn Destination, wanted: Wanted<'_>) -> Result<()> {
        let store = self.hold.store();
        if let Some(pool) = store.device_memory()
            && into.take_from_device(pool, self.hold.blocks(), blocks.clone())?
        {
            self.hold.count_out(blocks.len() * store.geometry().block_bytes());
            return Ok(());
        }
        let mut scratch = Vec::new();
        for index in blocks {
            wanted.check()?;
            let block = self.hold.blocks()[index];
            match (store.source(block), into.direct(index)) {
                (Some(source), Some(target)) => {
                    copy(source, target);
                    into.count(source.len());
                }
                _ => {
                    scratch.resize(store.geometry().block_bytes(), 0);
                    store.read(block, 0, &mut scratch)?;
                    into.write_block(index, &scratch)?;
                }
            }
            self.hold.count_out(store.geometry().block_bytes());
        }
        Ok(())
    }

    fn keep_alive(&mut self, _: Wanted<'_>) -> Result<()> {
        self.hold.renew();
        Ok(())
    }

    fn commit(&mut self, _: Wanted<'_>) -> Result<()> {
        self.hold.commit()
    }
}
