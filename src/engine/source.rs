//! Decides where a request's sequence comes from: a fresh prompt, a KV handle, a handle whose KV is still on its way, or the
//! tokens of a handle whose KV never arrived. [`of_request`] decides on the thread that submits. [`of_claim`] decides again on
//! the step thread, once the KV of a claimed handle has landed or failed. Both apply the same rules in the same order.

use super::Role;
use super::pending::{ReadySequence, SequenceSource};
use super::prepare::{self, prepare};
use super::request::Request;
use super::shared::EngineShared;
use crate::error::{Error, Result};
use crate::kv::{BlockTable, Claim, Consumed, KvId};
use crate::sequence::Snapshot;
use crate::sys::monotonic_ns;
use std::sync::Arc;

/// The source of a newly submitted request. A handle is taken last, when nothing else can refuse the request, so a refused
/// request leaves its handle unchanged. `id` is the request's id, under which the engine learns that a handle's KV has landed.
pub(super) fn of_request(shared: &Arc<EngineShared>, request: &Request, id: u64) -> Result<SequenceSource> {
    if request.kv == 0 {
        return fresh(shared, request);
    }
    let (kv, handle) = (shared.cache.kv(), KvId(request.kv));
    match kv.handles().peek(handle) {
        Ok(Some(base)) => _ = prepare::check(request, Some(&base), &shared.bounds)?,
        Ok(None) => return claim(shared, request, handle, id),
        Err(error) => {
            let source = recompute(shared, request, kv.handles().failed_sequence(handle), error)?;
            kv.handles().release(handle)?;
            return Ok(source);
        }
    }
    match take(shared, || kv.handles().consume(handle))? {
        Some((snapshot, table)) => continued(shared, request, snapshot, table),
        None => claim(shared, request, handle, id),
    }
}

/// The source of a request that has claimed its handle, once the handle's KV has landed or failed.
pub(super) fn of_claim(shared: &EngineShared, request: &Request, mut claim: Claim) -> Result<SequenceSource> {
    match take(shared, || claim.take()) {
        Ok(Some((snapshot, table))) => continued(shared, request, snapshot, table),
        Ok(None) => Ok(SequenceSource::Importing(claim)),
        Err(error) => recompute(shared, request, claim.sequence(), error),
    }
}

fn fresh(shared: &EngineShared, request: &Request) -> Result<SequenceSource> {
    let snapshot = prepare(request, None, &shared.bounds)?;
    check_local(shared, &snapshot)?;
    Ok(ready(snapshot, shared.cache.table(), false))
}

/// Continues the sequence of a handle, which this request now owns.
fn continued(shared: &EngineShared, request: &Request, base: Snapshot, table: BlockTable) -> Result<SequenceSource> {
    let snapshot = prepare(request, Some(base), &shared.bounds)?;
    Ok(ready(snapshot, table, false))
}

/// Starts over from the tokens of a handle whose KV did not arrive, if the request allows it and the tokens are known.
/// Otherwise returns `error`, the failure of the handle.
fn recompute(
    shared: &EngineShared,
    request: &Request,
    sequence: Option<Arc<Snapshot>>,
    error: Error,
) -> Result<SequenceSource> {
    let Some(sequence) = sequence.filter(|_| request.recompute) else { return Err(error) };
    let base = Snapshot { computed: 0, ..Snapshot::clone(&sequence) };
    let snapshot = prepare(request, Some(base), &shared.bounds)?;
    crate::log!(Info, "engine", "KV handle {:#x}: its KV did not arrive and is recomputed here: {error}", request.kv);
    Ok(ready(snapshot, shared.cache.table(), true))
}

fn ready(snapshot: Snapshot, table: BlockTable, recomputed: bool) -> SequenceSource {
    SequenceSource::Ready(ReadySequence { snapshot: Box::new(snapshot), table, recomputed })
}

/// Claims a handle whose KV is still on its way, after checking everything that does not depend on its sequence.
fn claim(shared: &Arc<EngineShared>, request: &Request, handle: KvId, id: u64) -> Result<SequenceSource> {
    prepare::check_own(request, &shared.bounds)?;
    let engine = Arc::downgrade(shared);
    let landed = move || engine.upgrade().into_iter().for_each(|engine| engine.inbox.landed(id));
    Ok(SequenceSource::Importing(shared.cache.kv().handles().claim(handle, Arc::new(landed))?))
}

/// Takes the sequence out of a handle and counts the duration of the handoff. None while the handle's KV is on its way.
fn take(shared: &EngineShared, consume: impl FnOnce() -> Result<Consumed>) -> Result<Option<(Snapshot, BlockTable)>> {
    let started = monotonic_ns();
    Ok(match consume()? {
        Consumed::Ready(snapshot, table) => {
            shared.counters.handed_off(monotonic_ns() - started);
            Some((snapshot, table))
        }
        Consumed::Pending => None,
    })
}

/// Refuses a prompt that leaves more than `local_prefill_tokens` to compute while the role is decode.
fn check_local(shared: &EngineShared, snapshot: &Snapshot) -> Result<()> {
    let most = shared.limits.local_prefill_tokens;
    let tokens = snapshot.tokens.len();
    if most == 0 || tokens <= most || shared.role() != Role::Decode {
        return Ok(());
    }
    let cached = shared.cache.cached_prefix(snapshot);
    if tokens - cached > most {
        crate::bail!(
            PrefillElsewhere,
            "{tokens} prompt tokens, {cached} of them cached, leave {} to compute: local_prefill_tokens is {most}",
            tokens - cached
        );
    }
    Ok(())
}
