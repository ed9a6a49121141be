//! Between caches of one process: a look-up by epoch, then one copy per block.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::bail;
use crate::error::Result;
use crate::kv::import::Incoming;
use crate::kv::ticket::{ProcessId, Ticket};
use crate::kv::{BlockTable, Cache, Consumed};
use crate::sequence::Snapshot;

/// Caches that gave out a ticket. Holds none of them alive.
static CACHES: Mutex<Vec<Weak<Cache>>> = Mutex::new(Vec::new());

/// This process, as tickets name it.
fn process() -> Result<ProcessId> {
    static NONCE: OnceLock<[u8; 16]> = OnceLock::new();
    let nonce = match NONCE.get() {
        Some(nonce) => *nonce,
        None => {
            let random = crate::sys::random_bytes()?;
            *NONCE.get_or_init(|| random)
        }
    };
    Ok(ProcessId { pid: std::process::id(), nonce })
}

/// Makes a cache one that tickets of this process can name.
pub(super) fn register(cache: &Arc<Cache>) -> Result<ProcessId> {
    let mut caches = CACHES.lock().unwrap_or_else(PoisonError::into_inner);
    caches.retain(|known| known.strong_count() > 0);
    if !caches.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(cache))) {
        caches.push(Arc::downgrade(cache));
    }
    drop(caches);
    process()
}

fn find(epoch: &[u8; 16]) -> Option<Arc<Cache>> {
    // Collected first: the last reference to a cache must not be dropped under the lock.
    let caches = CACHES.lock().unwrap_or_else(PoisonError::into_inner);
    let alive: Vec<Arc<Cache>> = caches.iter().filter_map(Weak::upgrade).collect();
    drop(caches);
    alive.into_iter().find(|cache| cache.epoch() == *epoch)
}

/// Takes the ticket's sequence into `cache`. The exporter's handle ends exactly when all of it is here; if this
/// fails, it stays.
pub(super) fn pull(
    cache: &Arc<Cache>,
    ticket: &Ticket,
    wanted: impl FnOnce() -> Result<()>,
) -> Result<(Snapshot, BlockTable)> {
    match ticket.process {
        Some(exporter) if exporter == process()? => {}
        Some(ProcessId { pid, .. }) => {
            bail!(Peer, "KV ticket: its cache is in process {pid}, which this library cannot pull from: use an image")
        }
        None => bail!(Unsupported, "KV ticket: no endpoint of a kind that this library knows"),
    }
    let Some(exporter) = find(&ticket.epoch) else {
        bail!(Expired, "KV ticket: the exporting cache is gone or began a new epoch");
    };
    let id = ticket.handle;
    let (snapshot, source) = exporter.pin(id)?;
    exporter.touch(id)?;
    ticket.check_sequence(&snapshot)?;
    if Arc::ptr_eq(&exporter, cache) {
        drop(source);
        wanted()?;
        return match cache.consume(id)? {
            Consumed::Ready(snapshot, table) => Ok((snapshot, table)),
            Consumed::Pending => bail!(WouldBlock, "{id}: its import is in flight"),
        };
    }
    let chain = cache.chain(&snapshot);
    let incoming = Incoming::new(cache, Snapshot::clone(&snapshot), chain, exporter.geometry())?;
    let mut block = vec![0; exporter.geometry().block_bytes()];
    for (index, &id) in source.blocks().iter().enumerate().skip(incoming.first_needed()) {
        exporter.store().read(id, 0, &mut block);
        incoming.write_block(index, &block);
        exporter.count_out(block.len());
    }
    wanted()?;
    exporter.end_consumed(id)?;
    Ok(incoming.finish())
}
