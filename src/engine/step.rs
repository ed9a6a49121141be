//! The step thread: take what the host asked for, plan, run the model, sample, tell.

use super::active::{Active, Arrival, End, Source, finished};
use super::blocks::ActiveBlocks;
use super::event::{Event, EventKind};
use super::prepare::{Bounds, prepare};
use super::queue::{Reservation, SpaceWaker};
use super::shared::{Shared, Work};
use super::{Role, batch};
use crate::backend::Batch;
use crate::error::{Error, Result, Status};
use crate::kv::{BlockTable, Consumed, KvId};
use crate::model::decoder::Executor;
use crate::sampling::{self, Scratch};
use crate::scheduler::{Limits, NewSeq, Plan, Scheduler};
use crate::sequence::{FinishReason, Snapshot};
use crate::sys::monotonic_ns;
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// Prompt tokens that a decode engine takes into a step: few, so that inter-token latency holds.
const DECODE_ROLE_PREFILL_TOKENS: usize = 64;

pub(super) struct Stepper {
    shared: Arc<Shared>,
    waker: Weak<dyn SpaceWaker>,
    executor: Box<dyn Executor>,
    bounds: Bounds,
    scheduler: Scheduler,
    active: HashMap<u64, Active>,
    /// Requests whose KV is still on its way.
    importing: Vec<Arrival>,
    /// Requests with events that the queue had no room for.
    stalled: Vec<u64>,
    plan: Plan,
    batch: Batch,
    logits: Vec<f32>,
    scratch: Scratch,
    /// Place for the ENGINE_FAILED event, kept since creation.
    failure: Option<Reservation>,
}

impl Stepper {
    pub fn new(shared: Arc<Shared>, executor: Box<dyn Executor>, bounds: Bounds, failure: Reservation) -> Stepper {
        let waker: Arc<dyn SpaceWaker> = shared.clone();
        Stepper {
            waker: Arc::downgrade(&waker),
            shared,
            executor,
            bounds,
            scheduler: Scheduler::new(),
            active: HashMap::new(),
            importing: Vec::new(),
            stalled: Vec::new(),
            plan: Plan::default(),
            batch: Batch::default(),
            logits: Vec::new(),
            scratch: Scratch::default(),
            failure: Some(failure),
        }
    }

    /// Until the engine is destroyed. A fault ends all open requests and leaves the engine failed.
    pub fn run(mut self) {
        let mut progress = false;
        loop {
            let work = self.shared.take(!progress, self.next_deadline());
            if work.stop {
                self.end_all(work, Error::new(Status::Shutdown, "the engine was destroyed"));
                return;
            }
            if self.failure.is_none() {
                self.end_all(work, Error::new(Status::Internal, "the engine has failed"));
                progress = false;
                continue;
            }
            progress = match crate::panics::catch(|| self.turn(work)).and_then(|turn| turn) {
                Ok(progress) => progress,
                Err(error) => self.fail(error),
            };
        }
    }

    /// One turn of the loop; true if a step ran, so that another may follow at once.
    fn turn(&mut self, work: Work) -> Result<bool> {
        self.flush_stalled();
        for arrival in work.arrivals {
            self.arrive(arrival);
        }
        self.land_imports();
        for id in work.cancels {
            self.end_now(id, Error::new(Status::Cancelled, "cancelled"));
        }
        self.end_overdue();
        for id in work.exports {
            self.end(id, End::Reason(FinishReason::Exported));
        }
        let progress = self.step();
        self.publish_counts();
        progress
    }

    // ---- requests in ----

    fn arrive(&mut self, arrival: Arrival) {
        let Arrival { id, reservation, request, prefill_only, deadline, source } = arrival;
        match source {
            Source::Ready(snapshot, table) => {
                let chain = self.shared.cache.hash_chain(&snapshot);
                let active = Active {
                    id,
                    user_tag: request.user_tag,
                    published: 0,
                    snapshot: *snapshot,
                    table,
                    chain,
                    prefill_only,
                    keep_kv: request.keep_kv,
                    deadline,
                    outbox: Default::default(),
                    end: None,
                    reservation,
                };
                self.start(active, request.emit_pending, request.priority);
            }
            source => self.importing.push(Arrival { id, reservation, request, prefill_only, deadline, source }),
        }
    }

    fn start(&mut self, active: Active, emit_pending: bool, priority: u32) {
        let id = active.id;
        let over = self.stop_reason(&active.snapshot);
        let pending = active.snapshot.pending().is_some();
        let tokens = active.snapshot.tokens.len();
        let to_come = if active.prefill_only { 0 } else { active.snapshot.params.max_new_tokens as usize };
        self.scheduler.add(NewSeq {
            id,
            tokens,
            computed: active.snapshot.computed as usize,
            max_tokens: tokens.saturating_add(to_come).min(self.bounds.max_tokens() as usize).max(tokens),
            priority,
            now_ns: monotonic_ns(),
        });
        let events = (emit_pending && pending).then(|| active.token_events(&[]));
        self.active.insert(id, active);
        if let Some(events) = events {
            self.emit(id, events);
        }
        // A generation that was over when its snapshot was taken, and still is under the new parameters.
        if let Some(reason) = over {
            self.end(id, End::Reason(reason));
        }
    }

    fn land_imports(&mut self) {
        for arrival in std::mem::take(&mut self.importing) {
            let Source::Importing(kv) = arrival.source else { unreachable!("only imports wait") };
            match self.shared.cache.consume(kv) {
                Ok(Consumed::Pending) => self.importing.push(arrival),
                Ok(Consumed::Ready(snapshot, table)) => match prepare(&arrival.request, Some(snapshot), &self.bounds) {
                    Ok(snapshot) => {
                        let source = Source::Ready(Box::new(snapshot), table);
                        self.arrive(Arrival { source, ..arrival });
                    }
                    Err(error) => self.refuse(arrival, error),
                },
                Err(error) => self.refuse(arrival, error),
            }
        }
    }

    /// Ends a request that never became a sequence.
    fn refuse(&mut self, arrival: Arrival, error: Error) {
        let event = finished(arrival.request.user_tag, arrival.id, FinishReason::Error, Some(error.status));
        self.shared.finish(arrival.reservation, event);
    }

    // ---- one step ----

    fn limits(&self) -> Limits {
        let role = self.shared.role.load(Relaxed);
        let counters = &self.shared.counters;
        if counters.role_in_effect.swap(role, Relaxed) != role {
            let since = counters.role_set_ns.load(Relaxed);
            counters.role_switch_ns_last.store(monotonic_ns().saturating_sub(since), Relaxed);
        }
        let most = self.shared.limits.max_batch_tokens;
        Limits {
            max_sequences: self.shared.limits.max_sequences,
            max_batch_tokens: most,
            max_prefill_tokens: if role == Role::Decode as u32 { most.min(DECODE_ROLE_PREFILL_TOKENS) } else { most },
        }
    }

    fn step(&mut self) -> Result<bool> {
        let limits = self.limits();
        let started = monotonic_ns();
        // Read before planning: blocks that come back meanwhile count as news.
        let available = self.shared.cache.kv().available_blocks();
        let mut blocks = ActiveBlocks::new(&self.shared, &mut self.active);
        self.scheduler.plan(&limits, started, &mut blocks, &mut self.plan);
        let hits = blocks.prefix_hits;
        self.shared.counters.prefix_hit_tokens.fetch_add(hits, Relaxed);
        self.shared.counters.preemptions.fetch_add(self.plan.preempted.len() as u64, Relaxed);
        if self.plan.items.is_empty() {
            return Ok(self.plan.blocked && self.shared.cache.wake_when_free(available + 1, &self.shared));
        }
        batch::build(&self.plan, &self.active, self.shared.cache.block_tokens(), &mut self.batch);
        crate::failpoint::hit("engine.step")?;
        self.executor.execute(&self.batch, &mut self.logits)?;
        self.scheduler.commit(&self.plan);
        self.after_model()?;

        let counters = &self.shared.counters;
        let ended = monotonic_ns();
        let took = ended - started;
        counters.steps.fetch_add(1, Relaxed);
        counters.busy_ns.fetch_add(took, Relaxed);
        counters.step_ns_last.store(took, Relaxed);
        counters.step_ns_max.fetch_max(took, Relaxed);
        counters.last_step_end_ns.store(ended, Relaxed);
        Ok(true)
    }

    /// Books what the model computed, samples where a sequence's last token was in the batch.
    fn after_model(&mut self) -> Result<()> {
        let items = std::mem::take(&mut self.plan.items);
        let vocab = self.executor.vocab_size();
        let shared = self.shared.clone();
        let eos_ids = shared.cache.eos_ids();
        let mut logits = std::mem::take(&mut self.logits);
        let mut rows = logits.chunks_exact_mut(vocab);
        for item in &items {
            let Some(active) = self.active.get_mut(&item.seq) else { continue };
            let computed = item.start + item.len;
            active.snapshot.computed = computed as u32;
            let generated = active.snapshot.generated() as usize;
            let prompt_end = active.snapshot.tokens.len() - generated;
            let of_prompt = computed.min(prompt_end).saturating_sub(item.start);
            self.shared.counters.prompt_tokens.fetch_add(of_prompt as u64, Relaxed);
            self.shared.cache.publish(active);
            if !item.samples {
                continue;
            }
            let row = rows.next().ok_or_else(|| crate::error!(Internal, "the model gave too few rows of logits"))?;
            match sampling::sample(row, &active.snapshot.params, context(&active.snapshot, eos_ids), &mut self.scratch)
            {
                Ok(sampled) => self.accept(item.seq, sampled),
                // One sequence's bad logits are that sequence's end, not its neighbours'.
                Err(error) => self.end_now(item.seq, error),
            }
        }
        self.plan.items = items;
        self.logits = logits;
        Ok(())
    }

    fn accept(&mut self, id: u64, sampled: sampling::Sampled) {
        let Some(active) = self.active.get_mut(&id) else { return };
        active.snapshot.tokens.push(sampled.token);
        active.snapshot.last_logprob = sampled.logprob;
        self.scheduler.append(id);
        self.shared.counters.generated_tokens.fetch_add(1, Relaxed);
        let events = active.token_events(&sampled.top);
        let prefill_only = active.prefill_only;
        let over = match self.stop_reason(&self.active[&id].snapshot) {
            // On a prefill engine the length is the decode engine's business.
            Some(FinishReason::Length) | None if prefill_only => Some(FinishReason::Prefilled),
            other => other,
        };
        self.emit(id, events);
        if let Some(reason) = over {
            self.end(id, End::Reason(reason));
        }
    }

    fn stop_reason(&self, snapshot: &Snapshot) -> Option<FinishReason> {
        let prompt_end = snapshot.tokens.len() - snapshot.generated() as usize;
        let limit = self.bounds.max_tokens() as usize;
        sampling::check(&snapshot.params, &snapshot.tokens, prompt_end, self.shared.cache.eos_ids(), limit)
    }

    // ---- events out ----

    /// Queues a group of events, or keeps it and pauses the sequence until there is room.
    fn emit(&mut self, id: u64, mut events: Vec<Event>) {
        let Some(active) = self.active.get_mut(&id) else { return };
        if active.outbox.is_empty() && self.shared.queue.push(&mut events, &self.waker) {
            return;
        }
        if active.outbox.is_empty() {
            self.stalled.push(id);
            self.scheduler.pause(id);
        }
        active.outbox.push_back(events);
    }

    fn flush_stalled(&mut self) {
        for id in std::mem::take(&mut self.stalled) {
            let Some(active) = self.active.get_mut(&id) else { continue };
            while let Some(events) = active.outbox.front_mut() {
                if !self.shared.queue.push(events, &self.waker) {
                    break;
                }
                active.outbox.pop_front();
            }
            if !active.outbox.is_empty() {
                self.stalled.push(id);
                continue;
            }
            match active.end.take() {
                Some(end) => self.finish(id, end),
                None => {
                    self.scheduler.resume(id);
                }
            }
        }
    }

    // ---- requests out ----

    /// Ends a request behind the events it still owes.
    fn end(&mut self, id: u64, end: End) {
        let Some(active) = self.active.get_mut(&id) else { return };
        if active.outbox.is_empty() {
            self.finish(id, end);
        } else {
            active.end.get_or_insert(end);
        }
    }

    /// Ends a request at once; tokens that the host has not made room for are dropped.
    fn end_now(&mut self, id: u64, error: Error) {
        if let Some(at) = self.importing.iter().position(|a| a.id == id) {
            let arrival = self.importing.swap_remove(at);
            if let Source::Importing(kv) = arrival.source {
                let _ = self.shared.cache.kv().release(kv);
            }
            return self.refuse(arrival, error);
        }
        self.finish(id, End::Failed(error));
    }

    fn finish(&mut self, id: u64, end: End) {
        let Some(active) = self.active.remove(&id) else { return };
        self.scheduler.remove(id);
        let (mut reason, mut status) = match end {
            End::Reason(reason) => (reason, None),
            End::Failed(error) => {
                crate::log!(Debug, "engine", "request {id:#x} ended: {error}");
                (FinishReason::Error, Some(error.status))
            }
        };
        let index = active.snapshot.generated();
        let mut kv = 0;
        if active.hands_over(reason) {
            match self.hand_over(active.snapshot, active.table, reason) {
                Ok(handle) => kv = handle.0,
                Err(error) => (reason, status) = (FinishReason::Error, Some(error.status)),
            }
        } else {
            drop(active.table);
        }
        let mut event = finished(active.user_tag, id, reason, status);
        event.kv = kv;
        event.index = index;
        self.shared.finish(active.reservation, event);
    }

    fn hand_over(&self, mut snapshot: Snapshot, table: BlockTable, reason: FinishReason) -> Result<KvId> {
        snapshot.finished = matches!(reason, FinishReason::Stop | FinishReason::Length).then_some(reason);
        let started = monotonic_ns();
        let handle = self.shared.cache.hand_over(snapshot, table);
        self.shared.counters.export_ns_last.store(monotonic_ns() - started, Relaxed);
        handle
    }

    fn next_deadline(&self) -> Option<Instant> {
        let active = self.active.values().filter_map(|a| a.deadline);
        active.chain(self.importing.iter().filter_map(|a| a.deadline)).min()
    }

    fn end_overdue(&mut self) {
        let now = Instant::now();
        let active = self.active.values().filter(|a| a.deadline.is_some_and(|d| d <= now)).map(|a| a.id);
        let importing = self.importing.iter().filter(|a| a.deadline.is_some_and(|d| d <= now)).map(|a| a.id);
        for id in active.chain(importing).collect::<Vec<_>>() {
            self.end_now(id, Error::new(Status::Timeout, "the deadline passed"));
        }
    }

    /// Ends every open request with the same error.
    fn end_all(&mut self, work: Work, error: Error) {
        for arrival in work.arrivals.into_iter().chain(std::mem::take(&mut self.importing)) {
            self.refuse(arrival, error.clone());
        }
        for id in self.active.keys().copied().collect::<Vec<_>>() {
            self.finish(id, End::Failed(error.clone()));
        }
        self.publish_counts();
    }

    fn fail(&mut self, error: Error) -> bool {
        crate::log!(Error, "engine", "the engine failed: {error}");
        self.shared.fail(error.clone());
        if let Some(reservation) = self.failure.take() {
            let mut event = Event::new(EventKind::EngineFailed, 0, 0);
            event.status = Some(error.status);
            reservation.finish(event);
        }
        self.end_all(Work::default(), error);
        self.scheduler = Scheduler::new();
        false
    }

    fn publish_counts(&self) {
        let counters = &self.shared.counters;
        counters.running.store(self.scheduler.running() as u32, Relaxed);
        counters.waiting.store((self.scheduler.waiting() + self.importing.len()) as u32, Relaxed);
    }
}

fn context<'a>(snapshot: &'a Snapshot, eos_ids: &'a [u32]) -> sampling::Ctx<'a> {
    sampling::Ctx {
        tokens: &snapshot.tokens,
        prompts: &snapshot.prompts,
        generated: snapshot.generated(),
        position: snapshot.tokens.len() as u64,
        eos_ids,
    }
}
