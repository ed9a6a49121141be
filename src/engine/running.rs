//! A running sequence: its tokens, its blocks, and how they change from arrival to end.

use super::ModelCache;
use super::blocks::SequenceBlocks;
use super::event::{Event, EventKind};
use super::guard::RequestGuard;
use super::handover::hand_over;
use super::outbox::{End, Outbox};
use super::pending::ReadySequence;
use super::prepare::Bounds;
use super::request::Request;
use super::shared::EngineShared;
use crate::error::{Error, Status};
use crate::kv::StreamingExport;
use crate::sampling::{self, Sampled, TokenCounts};
use crate::sequence::{FinishReason, Snapshot};
use std::time::Instant;

/// A request from its arrival in the scheduler to its FINISHED event.
pub(super) struct RunningRequest {
    /// Tokens and sampling state.
    snapshot: Snapshot,
    /// Occurrences of each token in `snapshot.tokens`, for penalties. Every generated token is added.
    counts: TokenCounts,
    /// Handle through which a peer pulls the prompt's KV while it is being computed.
    streaming: Option<StreamingExport>,
    blocks: SequenceBlocks,
    /// Tokens found in the prefix cache when the sequence was last admitted; None if there was no look-up.
    prefix_hit: Option<u32>,
    /// Whether a step of this engine has computed KV of the sequence.
    begun: bool,
    /// Whether the request ends with its first token and exports its KV.
    prefill_only: bool,
    /// Whether the request exports its KV when it stops or reaches its length.
    keep_kv: bool,
    recomputed: bool,
    deadline: Option<Instant>,
    outbox: Outbox,
    /// Declared last, so that everything else is released before the FINISHED event goes out.
    guard: RequestGuard,
}

impl RunningRequest {
    /// A sequence that is ready to be scheduled. Begins a streaming export if the request asks for one.
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
            true => cache.kv().handles().begin_streaming_export(Snapshot::clone(&snapshot), &table).ok(),
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
            outbox: Outbox::default(),
            guard,
        }
    }

    /// The request's id.
    pub fn id(&self) -> u64 {
        self.guard.id
    }

    /// Time at which the request ends with TIMEOUT.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the KV of the request's handle did not arrive and is computed here instead.
    pub fn is_recomputed(&self) -> bool {
        self.recomputed
    }

    /// Tokens and sampling state of the sequence.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Occurrences of the sequence's tokens, for penalties.
    pub fn counts(&self) -> &TokenCounts {
        &self.counts
    }

    /// The sequence's KV blocks.
    pub fn blocks(&self) -> &SequenceBlocks {
        &self.blocks
    }

    /// Upper bound of the tokens whose KV the sequence needs on this engine.
    pub fn most_tokens(&self, bounds: &Bounds) -> usize {
        let (tokens, params) = (self.snapshot.tokens.len(), &self.snapshot.params);
        let to_come = match self.prefill_only {
            true => 0,
            false => params.max_new_tokens.saturating_sub(self.snapshot.generated()) as usize,
        };
        tokens.saturating_add(to_come).min(bounds.max_tokens() as usize).max(tokens)
    }

    // ---- KV ----

    /// Reserves blocks for the tokens `0..upto`, of which `0..computed` have their KV. Reserves all or, returning false, none.
    pub fn reserve(&mut self, computed: u32, upto: u32) -> bool {
        self.blocks.reserve(computed, upto)
    }

    /// Adopts the sequence's cached prefix and returns its number of tokens.
    pub fn attach_prefix(&mut self, cache: &ModelCache) -> usize {
        let hit = self.blocks.adopt_prefix(cache, &self.snapshot);
        self.snapshot.computed = hit as u32;
        self.prefix_hit = Some(hit as u32);
        hit
    }

    /// Releases the sequence's blocks, because it was preempted or not admitted after all.
    pub fn release_blocks(&mut self) {
        self.snapshot.computed = 0;
        self.blocks.clear();
    }

    /// Records that a step which began at `started_ns` computed the KV of tokens `start..end`. Returns the number of prompt
    /// tokens among them.
    pub fn computed(&mut self, cache: &ModelCache, start: usize, end: usize, started_ns: u64) -> usize {
        self.snapshot.computed = end as u32;
        if !std::mem::replace(&mut self.begun, true) {
            self.guard.scheduled(started_ns);
            // Not after a preemption, when the prefix found is the sequence's own.
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

    /// Appends a sampled token.
    pub fn append(&mut self, sampled: Sampled, now_ns: u64) {
        self.guard.generated(now_ns);
        self.snapshot.tokens.push(sampled.token);
        self.counts.push(sampled.token);
        self.snapshot.last_logprob = sampled.logprob;
        self.snapshot.last_top = sampled.top;
    }

    /// Reason why the generation ends with its newest token, if it does.
    pub fn over(&self, bounds: &Bounds, eos_ids: &[u32]) -> Option<FinishReason> {
        let prompt_end = self.snapshot.tokens.len() - self.snapshot.generated() as usize;
        let limit = bounds.max_tokens() as usize;
        sampling::check(&self.snapshot.params, &self.snapshot.tokens, prompt_end, eos_ids, limit)
    }

    /// Reason why the request ends with a token just sampled here, if it does. A prefill-only request always ends; whether it has
    /// reached its length is left to the decode engine.
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
        Some(Event { kv: streaming.id().0, ..self.event(EventKind::KvStreamStarted) })
    }

    /// The TOKEN event of the last token, followed by the events of its alternatives.
    pub fn token_events(&self) -> Vec<Event> {
        let index = self.snapshot.generated().saturating_sub(1);
        let token = self.snapshot.tokens.last().map_or(-1, |&t| t as i32);
        let logprob = self.snapshot.last_logprob;
        let chosen = Event { token, logprob, index, ..self.event(EventKind::Token) };
        let wanted = self.snapshot.params.logprobs.unwrap_or(0) as usize;
        let alternatives = self.snapshot.last_top.iter().take(wanted).map(|&(token, logprob)| {
            let token = token as i32;
            Event { token, logprob, index, ..self.event(EventKind::TopLogprob) }
        });
        std::iter::once(chosen).chain(alternatives).collect()
    }

    fn event(&self, kind: EventKind) -> Event {
        Event::new(kind, self.guard.user_tag, self.guard.id)
    }

    /// The request's events that wait for room in the queue.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    // ---- end ----

    /// Ends the request: its KV becomes a handle or returns to the pool, and then its FINISHED event goes out.
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
        // Bindings are dropped last to first, so the guard is dropped last, also in a panic.
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
                    .fail(failure.unwrap_or_else(|| {
                        Error::new(Status::Cancelled, "the request ended without exporting its KV")
                    }));
            }
            drop(blocks);
        }
        let ended = Event::finished(guard.user_tag, guard.id, reason, status);
        guard.finish(Event { kv, index, cached_tokens, recomputed, ..ended });
    }

    /// Whether a request that ends for this reason exports its KV.
    fn hands_over(&self, reason: FinishReason) -> bool {
        match reason {
            FinishReason::Exported => true,
            FinishReason::Error => false,
            FinishReason::Stop | FinishReason::Length | FinishReason::Prefilled => self.keep_kv || self.prefill_only,
        }
    }
}
