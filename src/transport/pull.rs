//! The importer: turns a ticket into a sequence in this cache's blocks.

use super::client::Peers;
use super::local::{self, LocalTransfer};
use super::source::{TransferSource, Wanted};
use crate::bail;
use crate::error::{Result, Status};
use crate::kv::Incoming;
use crate::kv::format::{Endpoint, Ticket};
use crate::kv::{BlockTable, Cache, Consumed, HashChain, Waker};
use crate::sequence::Snapshot;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a wait for free blocks checks whether the import is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// Imports a ticket's sequence into `cache`. The exporter's handle is consumed exactly when all blocks are here and still
/// wanted; if this fails, the handle stays.
pub(super) fn pull(
    cache: &Arc<Cache>,
    peers: Option<&Arc<Peers>>,
    ticket: &Ticket,
    wanted: Wanted<'_>,
) -> Result<(Snapshot, BlockTable)> {
    // Given up while it was queued: do not wait for a peer that may not answer.
    wanted.check()?;
    for endpoint in &ticket.endpoints {
        let Endpoint::Process(process) = endpoint else { continue };
        if *process != local::process()? || peers.is_some_and(|peers| peers.prefers_other_than_process(&ticket.epoch)) {
            continue;
        }
        let exporter = local::find(&ticket.epoch)?;
        crate::failpoint::hit("transport.import.open")?;
        let hold = exporter.transfers().hold(ticket.handle, &ticket.epoch, &ticket.digest)?;
        if Arc::ptr_eq(&exporter, cache) {
            return within(cache, ticket, hold, wanted);
        }
        return transfer(cache, ticket, &mut LocalTransfer { hold }, wanted);
    }
    match peers {
        Some(peers) => transfer(cache, ticket, &mut *peers.open(ticket, wanted)?, wanted),
        None => bail!(Peer, "KV ticket: its cache is in another process"),
    }
}

/// Imports a ticket of this very cache: the block table changes owner.
fn within(
    cache: &Arc<Cache>,
    ticket: &Ticket,
    hold: crate::kv::TransferHold,
    wanted: Wanted<'_>,
) -> Result<(Snapshot, BlockTable)> {
    let mut source = LocalTransfer { hold };
    while source.more(wanted)?.whole.is_none() {}
    drop(source);
    match cache.handles().consume(ticket.handle)? {
        Consumed::Ready(snapshot, table) => {
            Ok((Snapshot { host_data: ticket.snapshot.host_data.clone(), ..snapshot }, table))
        }
        Consumed::Pending => bail!(WouldBlock, "{}: its KV is on its way", ticket.handle),
    }
}

fn transfer(
    cache: &Arc<Cache>,
    ticket: &Ticket,
    source: &mut dyn TransferSource,
    wanted: Wanted<'_>,
) -> Result<(Snapshot, BlockTable)> {
    let tokens = ticket.tokens().len() as u32;
    let expected = Snapshot { computed: tokens, ..ticket.snapshot.clone() };
    let mut incoming = None;
    let (mut have, mut hidden, mut exposed) = (0, 0, 0);
    let mut done_at = None;
    let mut whole = loop {
        let more = source.more(wanted)?;
        if more.whole.is_some() && done_at.is_none() {
            done_at = Some(Instant::now());
        }
        // Only after the exporter was asked: the chain is checked while the answer is on its way.
        let incoming = match &mut incoming {
            Some(incoming) => incoming,
            none => {
                let chain = ticket.check_chain()?;
                let new = room(cache, ticket, &expected, chain, source, wanted)?;
                have = new.first_needed();
                none.insert(new)
            }
        };
        crate::failpoint::hit("transport.import.blocks")?;
        let available = more.available.min(incoming.n_source_blocks());
        if available > have {
            source.fetch(have..available, incoming, wanted)?;
            let bytes = ((available - have) * ticket.geometry.block_bytes()) as u64;
            *(if more.whole.is_some() { &mut exposed } else { &mut hidden }) += bytes;
            have = available;
        }
        if let Some(whole) = more.whole {
            break whole;
        }
    };
    // It came with the ticket; the exporter's may be another by now, and does not travel with the blocks.
    whole.host_data.clone_from(&ticket.snapshot.host_data);
    check_sequence(ticket, &whole)?;
    let needed = whole.computed.div_ceil(ticket.geometry.block_tokens) as usize;
    if have < needed {
        bail!(Corrupt, "KV ticket: blocks: expected {needed}, the exporter has {have}");
    }
    crate::failpoint::hit("transport.import.copied")?;
    wanted.check()?;
    source.commit(wanted)?;
    crate::failpoint::hit("transport.import.committed")?;
    let Some(incoming) = incoming else { bail!(Internal, "KV import: nothing was begun") };
    let landed = incoming.finish(whole);
    let exposed_ns = done_at.map_or(0, |at| at.elapsed().as_nanos() as u64);
    cache.counters().pulled(hidden, exposed, exposed_ns);
    Ok(landed)
}

/// Allocates the blocks to land in. If none are free it waits: sequences end all the time, and the exporter keeps its
/// handle as long as it hears from this importer.
fn room(
    cache: &Arc<Cache>,
    ticket: &Ticket,
    expected: &Snapshot,
    chain: HashChain,
    source: &mut dyn TransferSource,
    wanted: Wanted<'_>,
) -> Result<Incoming> {
    let since = Instant::now();
    let needed = expected.computed.div_ceil(cache.geometry().block_tokens) as usize;
    loop {
        let full = match cache.transfers().receive(expected.clone(), chain.clone(), &ticket.geometry) {
            Err(error) if error.status == Status::OutOfMemory => error,
            made => return made,
        };
        if needed > cache.total_blocks() || !wanted.waits_for_blocks(since.elapsed()) {
            return Err(full);
        }
        let (free, wait) = crossbeam_channel::bounded(1);
        let waker: Waker = Arc::new(move || _ = free.try_send(()));
        if cache.wake_when_free(needed, &waker) {
            let _ = wait.recv_timeout(LOOK);
        }
        wanted.check()?;
        source.keep_alive(wanted)?;
    }
}

/// Checks that the exporter's sequence is the ticket's. A streaming export has got its first token since the ticket.
fn check_sequence(ticket: &Ticket, whole: &Snapshot) -> Result<()> {
    let said = &ticket.snapshot;
    let same = if ticket.streaming {
        whole.tokens.starts_with(&said.tokens)
            && whole.prompts == said.prompts
            && whole.params == said.params
            && whole.cache_salt == said.cache_salt
            && whole.computed as usize <= said.tokens.len()
    } else {
        whole == said
    };
    if !same {
        bail!(
            Corrupt,
            "KV ticket: sequence: expected {} tokens, {} computed; the exporter has {} and {}, or other ones",
            said.tokens.len(),
            said.computed,
            whole.tokens.len(),
            whole.computed
        );
    }
    Ok(())
}
