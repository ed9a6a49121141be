//! The requests of one engine. This is the only place where a request arrives, emits events or ends.

use super::deadlines::Deadlines;
use super::event::Event;
use super::load::Occupancy;
use super::outbox::End;
use super::pending::{PendingRequest, SequenceSource};
use super::queue::SpaceWaker;
use super::request::Request;
use super::running::RunningRequest;
use super::shared::EngineShared;
use super::source;
use crate::error::{Error, Result, Status};
use crate::sampling::Sampled;
use crate::scheduler::{Blocks, Limits, NewSeq, Plan, Scheduler, SeqId};
use crate::sequence::FinishReason;
use crate::sys::monotonic_ns;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// Running sequences by request id.
pub(super) type Running = HashMap<u64, RunningRequest>;

/// Owns every request that the step thread has taken, and the scheduler of the running ones. It must not know models or devices.
/// Each request ends with exactly one FINISHED event, sent by [`RunningRequest::finish`] or [`PendingRequest::refuse`]. If a
/// fault loses a request, its guard sends the event.
pub(super) struct RequestTable {
    shared: Arc<EngineShared>,
    /// The engine's wake-up for when a full queue has room again.
    space: Weak<dyn SpaceWaker>,
    scheduler: Scheduler,
    running: Running,
    /// Requests that wait for their KV, by request id.
    importing: HashMap<u64, PendingRequest>,
    /// Deadlines of the requests in `running` and `importing`.
    deadlines: Deadlines,
    /// Ids of requests with events that the queue had no room for.
    stalled: Vec<u64>,
}

impl RequestTable {
    /// An empty table for an engine.
    pub fn new(shared: Arc<EngineShared>) -> RequestTable {
        let space: Arc<dyn SpaceWaker> = shared.clone();
        RequestTable {
            space: Arc::downgrade(&space),
            shared,
            scheduler: Scheduler::new(),
            running: HashMap::new(),
            importing: HashMap::new(),
            deadlines: Deadlines::default(),
            stalled: Vec::new(),
        }
    }

    /// The running sequences, by the ids that plans use.
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// The next deadline of a request.
    pub fn earliest_deadline(&self) -> Option<Instant> {
        self.deadlines.earliest()
    }

    /// Whether the engine has no requests.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.importing.is_empty()
    }

    /// The requests by state.
    pub fn occupancy(&self) -> Occupancy {
        let prefilling = self.scheduler.prefilling();
        Occupancy {
            prefilling,
            decoding: self.scheduler.running() - prefilling,
            waiting: self.scheduler.waiting(),
            importing: self.importing.len(),
        }
    }

    /// Reports the numbers of requests to the counters.
    pub fn publish_counts(&self) {
        self.shared.counters.occupied(self.occupancy());
    }

    // ---- arriving ----

    /// Adds a request that was just accepted, or whose KV has landed or failed.
    pub fn arrive(&mut self, pending: PendingRequest) {
        let _ = crate::failpoint::hit("engine.arrive");
        // Bindings are dropped last to first, so the guard is dropped last, also in a panic.
        let PendingRequest { guard, request, prefill_only, deadline, export, source } = pending;
        let source = match source {
            SequenceSource::Importing(claim) => source::of_claim(&self.shared, &request, claim),
            ready => Ok(ready),
        };
        match source {
            Ok(SequenceSource::Ready(sequence)) => {
                let running =
                    RunningRequest::new(&self.shared.cache, &request, prefill_only, deadline, sequence, guard);
                self.start(running, &request, export);
            }
            Ok(source) => {
                let id = guard.id;
                self.deadlines.add(deadline, id);
                let pending = PendingRequest { request, prefill_only, deadline, export, source, guard };
                self.importing.insert(id, pending);
            }
            Err(error) => guard.fail(&error),
        }
    }

    /// Continues a request whose import has landed or failed.
    pub fn land(&mut self, id: u64) {
        if let Some(pending) = self.importing.remove(&id) {
            self.deadlines.remove(pending.deadline, id);
            self.arrive(pending);
        }
    }

    fn start(&mut self, running: RunningRequest, request: &Request, export: bool) {
        let (id, snapshot, bounds) = (running.id(), running.snapshot(), &self.shared.bounds);
        self.scheduler.add(NewSeq {
            id,
            tokens: snapshot.tokens.len(),
            computed: snapshot.computed as usize,
            max_tokens: running.most_tokens(bounds),
            priority: request.priority,
            now_ns: monotonic_ns(),
        });
        self.deadlines.add(running.deadline(), id);
        if running.is_recomputed() {
            self.shared.counters.recomputed();
        }
        let over = running.over(bounds, self.shared.cache.eos_ids());
        let announced = running.stream_started().map(|event| vec![event]);
        let repeated = (request.emit_pending && snapshot.pending().is_some()).then(|| running.token_events());
        self.running.insert(id, running);
        for events in announced.into_iter().chain(repeated) {
            self.emit(id, events);
        }
        // The generation had ended before its snapshot was taken, and is still over under the new parameters.
        if let Some(reason) = over {
            self.end(id, End::Reason(reason));
        } else if export {
            self.end(id, End::Reason(FinishReason::Exported));
        }
    }

    // ---- steps ----

    /// Plans a step over the running sequences.
    pub fn plan(&mut self, limits: &Limits, now_ns: u64, plan: &mut Plan) {
        let mut blocks = RunningBlocks { shared: &self.shared, running: &mut self.running, prefix_hits: 0 };
        self.scheduler.plan(limits, now_ns, &mut blocks, plan);
        self.shared.counters.planned(blocks.prefix_hits, plan.preempted.len() as u64);
    }

    /// Records the tokens computed by a step that began at `started_ns`. Returns the number of prompt tokens among them.
    pub fn commit(&mut self, plan: &Plan, started_ns: u64) -> u64 {
        self.scheduler.commit(plan);
        let mut of_prompts = 0;
        for item in &plan.items {
            if let Some(running) = self.running.get_mut(&item.seq) {
                of_prompts +=
                    running.computed(&self.shared.cache, item.start, item.start + item.len, started_ns) as u64;
            }
        }
        self.shared.counters.prompt_computed(of_prompts);
        of_prompts
    }

    /// Appends the token sampled for a sequence at `now_ns`. Invalid logits end that sequence alone, not the rest of the batch.
    pub fn sampled(&mut self, id: u64, outcome: Result<Sampled>, now_ns: u64) {
        let sampled = match outcome {
            Ok(sampled) => sampled,
            Err(error) => return self.fail(id, error),
        };
        let Some(running) = self.running.get_mut(&id) else { return };
        running.append(sampled, now_ns);
        self.scheduler.append(id);
        let events = running.token_events();
        let over = running.over_here(&self.shared.bounds, self.shared.cache.eos_ids());
        self.emit(id, events);
        if let Some(reason) = over {
            self.end(id, End::Reason(reason));
        }
    }

    // ---- events ----

    /// Sends a group of events, or keeps it and pauses the sequence until the queue has room.
    fn emit(&mut self, id: u64, events: Vec<Event>) {
        let Some(running) = self.running.get_mut(&id) else { return };
        let outbox = running.outbox();
        let stalled_before = outbox.is_stalled();
        if !outbox.send(events, &self.shared.queue, &self.space) && !stalled_before {
            self.stalled.push(id);
            self.scheduler.pause(id);
        }
    }

    /// Sends events that had no room before. Sequences whose events are all sent resume, or end.
    pub fn flush_stalled(&mut self) {
        for id in std::mem::take(&mut self.stalled) {
            let Some(running) = self.running.get_mut(&id) else { continue };
            if !running.outbox().flush(&self.shared.queue, &self.space) {
                self.stalled.push(id);
                continue;
            }
            match running.outbox().take_end() {
                Some(end) => self.finish(id, end),
                None => _ = self.scheduler.resume(id),
            }
        }
    }

    // ---- ending ----

    /// Ends a request with a KV handle; one whose import is in flight, as soon as the import has landed.
    pub fn export(&mut self, id: u64) {
        match self.importing.get_mut(&id) {
            Some(pending) => pending.export = true,
            None => self.end(id, End::Reason(FinishReason::Exported)),
        }
    }

    /// Ends a request at once with an error. Events that the queue has no room for are dropped.
    pub fn fail(&mut self, id: u64, error: Error) {
        match self.importing.remove(&id) {
            Some(pending) => {
                self.deadlines.remove(pending.deadline, id);
                pending.refuse(&error);
            }
            None => self.finish(id, End::Failed(error)),
        }
    }

    /// Ends the requests whose deadlines have passed.
    pub fn end_overdue(&mut self) {
        let now = Instant::now();
        while let Some(id) = self.deadlines.pop_overdue(now) {
            self.fail(id, Error::new(Status::Timeout, "the deadline passed"));
        }
    }

    /// Ends every request, and every one in `arrivals`, with the same error.
    pub fn end_all(&mut self, arrivals: Vec<PendingRequest>, error: &Error) {
        for pending in arrivals.into_iter().chain(self.importing.drain().map(|(_, pending)| pending)) {
            pending.refuse(error);
        }
        for id in self.running.keys().copied().collect::<Vec<_>>() {
            self.finish(id, End::Failed(error.clone()));
        }
        self.deadlines = Deadlines::default();
        self.publish_counts();
    }

    /// Ends every request after a fault, which may have left the scheduler in any state.
    pub fn abandon_all(&mut self, error: &Error) {
        self.scheduler = Scheduler::new();
        self.end_all(Vec::new(), error);
    }

    /// Ends a request once the events it still owes are sent.
    fn end(&mut self, id: u64, end: End) {
        let Some(running) = self.running.get_mut(&id) else { return };
        if let Some(end) = running.outbox().end(end) {
            self.finish(id, end);
        }
    }

    fn finish(&mut self, id: u64, end: End) {
        let Some(running) = self.running.remove(&id) else { return };
        self.deadlines.remove(running.deadline(), id);
        self.scheduler.remove(id);
        let _ = crate::failpoint::hit("engine.finish");
        running.finish(end, &self.shared);
    }
}

/// The blocks of the running sequences, as the scheduler sees them.
struct RunningBlocks<'a> {
    shared: &'a EngineShared,
    running: &'a mut Running,
    /// Prompt tokens found in the prefix cache.
    prefix_hits: u64,
}

impl Blocks for RunningBlocks<'_> {
    fn reserve(&mut self, seq: SeqId, computed: usize, upto: usize) -> bool {
        self.running.get_mut(&seq).is_some_and(|running| running.reserve(computed as u32, upto as u32))
    }

    fn attach_prefix(&mut self, seq: SeqId) -> usize {
        let Some(running) = self.running.get_mut(&seq) else { return 0 };
        let hit = running.attach_prefix(&self.shared.cache);
        self.prefix_hits += hit as u64;
        hit
    }

    fn release(&mut self, seq: SeqId) {
        if let Some(running) = self.running.get_mut(&seq) {
            running.release_blocks();
        }
    }
}
