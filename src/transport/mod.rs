//! Moving KV between caches. [`import`] takes what [`ticket`] or an image reader gave out and picks the way by
//! what it is: an image brings its bytes along, a ticket says where to pull them from.

mod local;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::error::Result;
use crate::kv::image::{Envelope, Kind};
use crate::kv::{BlockTable, Cache, KvId};
use crate::sequence::Snapshot;

/// A ticket for a handle: with it a peer pulls the sequence itself, after which the handle is consumed.
pub fn ticket(cache: &Arc<Cache>, id: KvId) -> Result<Vec<u8>> {
    let process = local::register(cache)?;
    cache.encode_ticket(id, process)
}

/// Takes a ticket or an image in and gives the handle of what landed. Copies block by block: a ticket of `cache`
/// itself copies nothing.
pub fn import(cache: &Arc<Cache>, data: &[u8]) -> Result<KvId> {
    let (snapshot, table) = pull(cache, data, || Ok(()))?;
    cache.export(snapshot, table, None)
}

/// Like [`import`], but a ticket's blocks are pulled on the cache's transfer thread: its handle is there at once and
/// may be consumed as soon as it has landed. Whatever can be checked without the peer is checked before this
/// returns; an image is taken in whole. `done` is called exactly once if this succeeds, after waiters of the handle
/// were woken.
pub fn import_async(
    cache: &Arc<Cache>,
    data: &[u8],
    done: impl FnOnce(KvId, Result<()>) + Send + 'static,
) -> Result<KvId> {
    if Envelope::peek(data)?.kind == Kind::Image {
        let id = import(cache, data)?;
        done(id, Ok(()));
        return Ok(id);
    }
    let ticket = cache.open_ticket(data)?;
    let id = cache.begin_import()?;
    let weak = Arc::downgrade(cache);
    let job = move || {
        let outcome = match weak.upgrade() {
            None => Err(crate::error!(Shutdown, "{id}: the cache is closed")),
            Some(cache) => {
                let pulled = crate::panics::catch(|| local::pull(&cache, &ticket, || cache.check_import(id)));
                let pulled = pulled.and_then(|pulled| pulled);
                cache.finish_import(id, pulled)
            }
        };
        done(id, outcome);
    };
    cache.transfer(Box::new(job)).inspect_err(|_| cache.abandon_import(id))?;
    Ok(id)
}

/// The sequence of a ticket or an image. `wanted` is asked before the exporter's handle is ended: from then on
/// the sequence is here or nowhere.
fn pull(cache: &Arc<Cache>, data: &[u8], wanted: impl FnOnce() -> Result<()>) -> Result<(Snapshot, BlockTable)> {
    match Envelope::peek(data)?.kind {
        Kind::Image => cache.take_image(data),
        Kind::Ticket => local::pull(cache, &cache.open_ticket(data)?, wanted),
    }
}
