//! A sequence that an engine runs: its tokens, its blocks and the events it still owes.

use super::ModelCache;
use super::blocks::SequenceBlocks;
use super::event::{Event, EventKind};
use super::guard::RequestGuard;
use super::pending::ReadySequence;
use super::prepare::Bounds;
use super::queue::{Queue, SpaceWaker};
use super::request::Request;
use super::shared::EngineShared;
use crate::error::{Error, Result, Status};
use crate::kv::{KvId, StreamingExport};
use crate::sampling::{self, Sampled, TokenCounts};
use crate::sequence::{FinishReason, Snapshot};
use crate::sys::monotonic_ns;
use std::collections::VecDeque;
use std::sync::Weak;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

/// How a request ends.
#[derive(Clone, Debug)]
pub(super) enum End {
    Reason(FinishReason),
    Failed(Error),
}

/// A request from its arrival in the scheduler to its FINISHED event. Only this file writes its fields.
pub(super) struct RunningRequest {
    pub snapshot: Snapshot,
    /// Counts of `snapshot.tokens` for penalties, kept up with each token that is generated.
    pub counts: TokenCounts,
    /// The handle by which a peer pulls the prompt's KV while it is computed.
    streaming: Option<StreamingExport>,
    blocks: SequenceBlocks,
    /// Tokens that the prefix cache had when the sequence was last admitted; None if it was not asked.
    prefix_hit: Option<u32>,
    /// Some of its KV was computed here.
    begun: bool,
    /// Ends with its first token, and hands its KV over.
    prefill_only: bool,
    /// Hands its KV over when it stops or reaches its length.
    keep_kv: bool,
    recomputed: bool,
    deadline: Option<Instant>,
    /// Groups of events that the queue had no room for. The sequence is paused while there are any.
    outbox: VecDeque<Vec<Event>>,
    /// How it ends once the outbox is empty.
    end: Option<End>,
    /// Declared last, as in [`super::pending::PendingRequest`].
    guard: RequestGuard,
}

impl RunningRequest {
    pub fn new(
        cache: &ModelCache,
        request: &Request,
        prefill_only: bool,
        deadline: Option<Instant>,
        sequence: ReadySequence,
        guard: RequestGuard,
    ) -> RunningRequest {
        let ReadySequence { snapshot, table, recomputed } = sequence;
        let streaming = match prefill_only && request.stream_kv {
            true => cache.kv().begin_streaming_export(Snapshot::clone(&snapshot), &table).ok(),
            false => None,
        };
        let turn = snapshot.tokens.len() - snapshot.generated() as usize;
        RunningRequest {
            counts: TokenCounts::new(&snapshot.params, &snapshot.tokens, turn),
            blocks: SequenceBlocks::new(cache, &snapshot, table),
            snapshot: *snapshot,
            streaming,
            prefix_hit: None,
            begun: false,
            prefill_only,
            keep_kv: request.keep_kv,
            recomputed,
            deadline,
            outbox: VecDeque::new(),
            end: None,
            guard,
        }
    }

    pub fn id(&self) -> u64 {
        self.guard.id
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the KV of its handle did not come and is computed here.
    pub fn is_recomputed(&self) -> bool {
        self.recomputed
    }

    pub fn blocks(&self) -> &SequenceBlocks {
        &self.blocks
    }

    /// The most tokens whose KV it can come to need here.
    pub fn most_tokens(&self, bounds: &Bounds) -> usize {
        let (tokens, params) = (self.snapshot.tokens.len(), &self.snapshot.params);
        let to_come = match self.prefill_only {
            true => 0,
            false => params.max_new_tokens.saturating_sub(self.snapshot.generated()) as usize,
        };
        tokens.saturating_add(to_come).min(bounds.max_tokens() as usize).max(tokens)
    }

    // ---- KV ----

    /// Makes room for tokens `0..upto`, of which `0..computed` are there.
    pub fn reserve(&mut self, computed: u32, upto: u32) -> bool {
        self.blocks.reserve(computed, upto)
    }

    /// Takes what the prefix cache has of the sequence: the number of tokens.
    pub fn attach_prefix(&mut self, cache: &ModelCache) -> usize {
        let hit = self.blocks.adopt_prefix(cache, &self.snapshot);
        self.snapshot.computed = hit as u32;
        self.prefix_hit = Some(hit as u32);
        hit
    }

    /// Gives up its blocks: preempted, or not admitted after all.
    pub fn release_blocks(&mut self) {
        self.snapshot.computed = 0;
        self.blocks.clear();
    }

    /// The KV of tokens `start..end` was computed by a step that began at `started_ns`. The number of prompt tokens among them.
    pub fn computed(&mut self, cache: &ModelCache, start: usize, end: usize, started_ns: u64) -> usize {
        self.snapshot.computed = end as u32;
        if !std::mem::replace(&mut self.begun, true) {
            self.guard.scheduled(started_ns);
            // Not again after a preemption, when it would find its own blocks.
            self.snapshot.cached_tokens = self.prefix_hit.unwrap_or(self.snapshot.cached_tokens);
        }
        self.blocks.publish(cache, &self.snapshot);
        if let Some(streaming) = &self.streaming {
            streaming.advance(self.snapshot.computed);
        }
        let prompt_end = self.snapshot.tokens.len() - self.snapshot.generated() as usize;
        end.min(prompt_end).saturating_sub(start)
    }

    // ---- tokens ----

    /// Takes in the token that was sampled.
    pub fn append(&mut self, sampled: Sampled, now_ns: u64) {
        self.guard.generated(now_ns);
        self.snapshot.tokens.push(sampled.token);
        self.counts.push(sampled.token);
        self.snapshot.last_logprob = sampled.logprob;
        self.snapshot.last_top = sampled.top;
    }

    /// Why the generation is over with its newest token, if it is.
    pub fn over(&self, bounds: &Bounds, eos_ids: &[u32]) -> Option<FinishReason> {
        let prompt_end = self.snapshot.tokens.len() - self.snapshot.generated() as usize;
        let limit = bounds.max_tokens() as usize;
        sampling::check(&self.snapshot.params, &self.snapshot.tokens, prompt_end, eos_ids, limit)
    }

    /// The same right after a token was sampled here. A request that is for prefill only ends in any case: its length is the
    /// decode engine's business.
    pub fn over_here(&self, bounds: &Bounds, eos_ids: &[u32]) -> Option<FinishReason> {
        match self.over(bounds, eos_ids) {
            Some(FinishReason::Length) | None if self.prefill_only => Some(FinishReason::Prefilled),
            other => other,
        }
    }

    // ---- events ----

    /// The event that announces a streaming export, if there is one.
    pub fn stream_started(&self) -> Option<Event> {
        let streaming = self.streaming.as_ref()?;
        let mut event = Event::new(EventKind::KvStreamStarted, self.guard.user_tag, self.guard.id);
        event.kv = streaming.id().0;
        Some(event)
    }

    /// The TOKEN event of the last token, followed by its alternatives.
    pub fn token_events(&self) -> Vec<Event> {
        let index = self.snapshot.generated().saturating_sub(1);
        let mut token = Event::new(EventKind::Token, self.guard.user_tag, self.guard.id);
        token.token = self.snapshot.tokens.last().map_or(-1, |&t| t as i32);
        token.logprob = self.snapshot.last_logprob;
        token.index = index;
        let wanted = self.snapshot.params.logprobs.unwrap_or(0) as usize;
        let alternatives = self.snapshot.last_top.iter().take(wanted).map(|&(id, logprob)| {
            let mut event = Event::new(EventKind::TopLogprob, self.guard.user_tag, self.guard.id);
            event.token = id as i32;
            event.logprob = logprob;
            event.index = index;
            event
        });
        std::iter::once(token).chain(alternatives).collect()
    }

    /// Whether the queue had no room for some of its events.
    pub fn is_stalled(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Queues a group of events, behind those that wait already. False if it has to wait as well; then `space` is woken once
    /// there is room.
    pub fn emit(&mut self, mut events: Vec<Event>, queue: &Queue, space: &Weak<dyn SpaceWaker>) -> bool {
        let sent = self.outbox.is_empty() && queue.push(&mut events, space);
        if !sent {
            self.outbox.push_back(events);
        }
        sent
    }

    /// Queues what waits. False if some still has no room.
    pub fn flush(&mut self, queue: &Queue, space: &Weak<dyn SpaceWaker>) -> bool {
        while let Some(events) = self.outbox.front_mut() {
            if !queue.push(events, space) {
                return false;
            }
            self.outbox.pop_front();
        }
        true
    }

    // ---- end ----

    /// Decides how it ends once its events are out. The first decision counts.
    pub fn end_later(&mut self, end: End) {
        self.end.get_or_insert(end);
    }

    /// How it was to end once its events were out.
    pub fn take_end(&mut self) -> Option<End> {
        self.end.take()
    }

    /// Ends it: its KV goes into a handle or back to the pool, and then its FINISHED event goes out.
    pub fn finish(self, end: End, shared: &EngineShared) {
        let (mut reason, failure) = match end {
            End::Reason(reason) => (reason, None),
            End::Failed(error) => {
                crate::log!(Debug, "engine", "request {:#x} ended: {error}", self.guard.id);
                (FinishReason::Error, Some(error))
            }
        };
        let mut status = failure.as_ref().map(|error| error.status);
        let hands_over = self.hands_over(reason);
        // Bindings are dropped last to first: the guard last, also in a panic.
        let RunningRequest { guard, blocks, streaming, snapshot, recomputed, .. } = self;
        let (index, cached_tokens) = (snapshot.generated(), snapshot.cached_tokens);
        let mut kv = 0;
        if hands_over {
            match hand_over(shared, snapshot, streaming, blocks, reason) {
                Ok(handle) => kv = handle.0,
                Err(error) => (reason, status) = (FinishReason::Error, Some(error.status)),
            }
        } else {
            if let Some(streaming) = streaming {
                streaming
                    .fail(failure.unwrap_or_else(|| Error::new(Status::Cancelled, "the request ended without KV")));
            }
            drop(blocks);
        }
        let mut event = Event::finished(guard.user_tag, guard.id, reason, status);
        event.kv = kv;
        event.index = index;
        event.cached_tokens = cached_tokens;
        event.recomputed = recomputed;
        guard.finish(event);
    }

    /// Whether its end hands the KV over.
    fn hands_over(&self, reason: FinishReason) -> bool {
        match reason {
            FinishReason::Exported => true,
            FinishReason::Error => false,
            FinishReason::Stop | FinishReason::Length | FinishReason::Prefilled => self.keep_kv || self.prefill_only,
        }
    }
}

/// Makes a handle of a sequence that is done here.
fn hand_over(
    shared: &EngineShared,
    mut snapshot: Snapshot,
    streaming: Option<StreamingExport>,
    blocks: SequenceBlocks,
    reason: FinishReason,
) -> Result<KvId> {
    snapshot.finished = matches!(reason, FinishReason::Stop | FinishReason::Length).then_some(reason);
    let started = monotonic_ns();
    let kv = shared.cache.kv();
    let (table, chain) = blocks.into_parts();
    let handle = match streaming {
        Some(streaming) => streaming.finish(snapshot, table),
        None => kv.export(snapshot, table, None),
    };
    shared.counters.export_ns_last.store(monotonic_ns() - started, Relaxed);
    let handle = handle?;
    kv.set_chain(handle, &chain);
    Ok(handle)
}
