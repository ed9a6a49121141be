//! Where a request's sequence comes from: a fresh prompt, a KV handle, a handle whose KV is still on its way, or the tokens of
//! a handle whose KV never came. [`of_request`] decides on the thread that submits; [`of_claim`] decides again on the step
//! thread, once the KV of a claimed handle has landed or failed. Both apply the same rules in the same order.

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
use std::sync::atomic::Ordering::Relaxed;

/// What `request` starts from. A handle is taken last, when nothing else can refuse the request, so a refusal leaves it as it
/// was. `id` names the request to the engine once a handle's KV has landed.
pub(super) fn of_request(shared: &Arc<EngineShared>, request: &Request, id: u64) -> Result<SequenceSource> {
    if request.kv == 0 {
        return fresh(shared, request);
    }
    let (kv, handle) = (shared.cache.kv(), KvId(request.kv));
    match kv.peek(handle) {
        Ok(Some(base)) => _ = prepare::check(request, Some(&base), &shared.bounds)?,
        Ok(None) => return claim(shared, request, handle, id),
        Err(error) => {
            let source = recompute(shared, request, kv.failed_sequence(handle), error)?;
            kv.release(handle)?;
            return Ok(source);
        }
    }
    match take(shared, || kv.consume(handle))? {
        Some((snapshot, table)) => continued(shared, request, snapshot, table),
        None => claim(shared, request, handle, id),
    }
}

/// What a request whose handle was claimed starts from, now that something may have landed.
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

/// Goes on from a handle's sequence, which this request now owns.
fn continued(shared: &EngineShared, request: &Request, base: Snapshot, table: BlockTable) -> Result<SequenceSource> {
    let snapshot = prepare(request, Some(base), &shared.bounds)?;
    Ok(ready(snapshot, table, false))
}

/// Starts over from the tokens of a handle whose KV did not come, if the request allows it and the tokens are known. The
/// failure itself otherwise.
fn recompute(
    shared: &EngineShared,
    request: &Request,
    sequence: Option<Arc<Snapshot>>,
    error: Error,
) -> Result<SequenceSource> {
    let Some(sequence) = sequence.filter(|_| request.recompute) else { return Err(error) };
    let base = Snapshot { computed: 0, ..Snapshot::clone(&sequence) };
    let snapshot = prepare(request, Some(base), &shared.bounds)?;
    crate::log!(
        Info,
        "engine",
        "a request from KV handle {:#x} is computed here, because its KV did not come: {error}",
        request.kv
    );
    Ok(ready(snapshot, shared.cache.table(), true))
}

fn ready(snapshot: Snapshot, table: BlockTable, recomputed: bool) -> SequenceSource {
    SequenceSource::Ready(ReadySequence { snapshot: Box::new(snapshot), table, recomputed })
}

/// Takes a handle that is still on its way. What can be checked without its sequence is checked now.
fn claim(shared: &Arc<EngineShared>, request: &Request, handle: KvId, id: u64) -> Result<SequenceSource> {
    prepare::check_prompt(&request.prompt, shared.bounds.vocab_size)?;
    let engine = Arc::downgrade(shared);
    let landed = move || engine.upgrade().into_iter().for_each(|engine| engine.landed(id));
    Ok(SequenceSource::Importing(shared.cache.kv().claim(handle, Arc::new(landed))?))
}

/// Takes the sequence out of a handle, and counts the time that the handoff took. None while its KV is on its way.
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

/// Refuses a prompt that is better prefilled elsewhere, while the role is decode.
fn check_local(shared: &EngineShared, snapshot: &Snapshot) -> Result<()> {
    let most = shared.limits.local_prefill_tokens;
    let tokens = snapshot.tokens.len();
    if most == 0 || tokens <= most || shared.role.load(Relaxed) != Role::Decode as u32 {
        return Ok(());
    }
    let cached = shared.cache.cached_prefix(snapshot);
    if tokens - cached > most {
        crate::bail!(
            PrefillElsewhere,
            "{tokens} prompt tokens, {cached} of them cached: {} to compute, local_prefill_tokens is {most}",
            tokens - cached
        );
    }
    Ok(())
}
