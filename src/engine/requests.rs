//! How requests come in, and how their events and their ends go out: the step thread's side of it.

use super::event::{Event, EventKind};
use super::prepare::prepare;
use super::running::{End, PendingRequest, RunningRequest, SequenceSource, finished};
use super::step::StepLoop;
use crate::error::{Error, Result, Status};
use crate::kv::{BlockTable, Consumed, KvId, StreamingExport};
use crate::sampling::TokenCounts;
use crate::scheduler::NewSeq;
use crate::sequence::{FinishReason, Snapshot};
use crate::sys::monotonic_ns;
use std::time::Instant;

impl StepLoop {
    // ---- in ----

    pub(super) fn arrive(&mut self, mut arrival: PendingRequest) {
        let _ = crate::failpoint::hit("engine.arrive");
        let started = monotonic_ns();
        let source = match arrival.source {
            SequenceSource::Ready(..) => return self.start(arrival),
            SequenceSource::Importing(ref mut claim) => claim.take(),
        };
        match source {
            Ok(Consumed::Pending) => {
                self.deadlines.extend(arrival.deadline.map(|d| (d, arrival.place.id)));
                self.importing.insert(arrival.place.id, arrival);
            }
            Ok(Consumed::Ready(snapshot, table)) => {
                self.shared.counters.handed_off(monotonic_ns() - started);
                self.landed(arrival, snapshot, table);
            }
            Err(error) => self.failed_to_land(arrival, error),
        }
    }

    /// The KV of a request did not come: it is computed anew, if the request says so.
    fn failed_to_land(&mut self, mut arrival: PendingRequest, error: Error) {
        let sequence = match &arrival.source {
            SequenceSource::Importing(claim) if arrival.request.recompute => claim.sequence(),
            _ => None,
        };
        match sequence {
            Some(sequence) => {
                crate::log!(
                    Info,
                    "engine",
                    "request {:#x}: computed here, its KV did not come: {error}",
                    arrival.place.id
                );
                arrival.place.recomputed = true;
                self.shared.counters.recomputed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let table = self.shared.cache.table();
                self.landed(arrival, Snapshot { computed: 0, ..Snapshot::clone(&sequence) }, table);
            }
            None => arrival.refuse(&error),
        }
    }

    /// The import of a request is no longer in flight, or never was.
    pub(super) fn land(&mut self, id: u64) {
        if let Some(arrival) = self.importing.remove(&id) {
            self.forget_deadline(arrival.deadline, id);
            self.arrive(arrival);
        }
    }

    fn landed(&mut self, arrival: PendingRequest, snapshot: Snapshot, table: BlockTable) {
        match prepare(&arrival.request, Some(snapshot), &self.bounds) {
            Ok(snapshot) => {
                self.start(PendingRequest { source: SequenceSource::Ready(Box::new(snapshot), table), ..arrival })
            }
            Err(error) => {
                drop(table);
                arrival.refuse(&error);
            }
        }
    }

    fn start(&mut self, arrival: PendingRequest) {
        let PendingRequest { request, prefill_only, deadline, export, source, place } = arrival;
        let SequenceSource::Ready(snapshot, table) = source else { return };
        let id = place.id;
        let chain = self.shared.cache.hash_chain(&snapshot);
        let streaming = match prefill_only && request.stream_kv {
            true => self.shared.cache.kv().begin_streaming_export(Snapshot::clone(&snapshot), &table).ok(),
            false => None,
        };
        let started = streaming.as_ref().map(|streaming| {
            let mut event = Event::new(EventKind::KvStreamStarted, place.user_tag, id);
            event.kv = streaming.id().0;
            event
        });
        let turn = snapshot.tokens.len() - snapshot.generated() as usize;
        let active = RunningRequest {
            counts: TokenCounts::new(&snapshot.params, &snapshot.tokens, turn),
            published: 0,
            prefix_hit: None,
            begun: false,
            snapshot: *snapshot,
            streaming,
            table,
            chain,
            prefill_only,
            keep_kv: request.keep_kv,
            deadline,
            outbox: Default::default(),
            end: None,
            place,
        };
        let over = self.stop_reason(&active.snapshot);
        let tokens = active.snapshot.tokens.len();
        let to_come = match prefill_only {
            true => 0,
            false => active.snapshot.params.max_new_tokens.saturating_sub(active.snapshot.generated()) as usize,
        };
        self.scheduler.add(NewSeq {
            id,
            tokens,
            computed: active.snapshot.computed as usize,
            max_tokens: tokens.saturating_add(to_come).min(self.bounds.max_tokens() as usize).max(tokens),
            priority: request.priority,
            now_ns: monotonic_ns(),
        });
        let repeat = request.emit_pending && active.snapshot.pending().is_some();
        let events = repeat.then(|| active.token_events());
        self.deadlines.extend(deadline.map(|d| (d, id)));
        self.active.insert(id, active);
        for events in started.map(|event| vec![event]).into_iter().chain(events) {
            self.emit(id, events);
        }
        // A generation that was over when its snapshot was taken, and still is under the new parameters.
        if let Some(reason) = over {
            self.end(id, End::Reason(reason));
        } else if export {
            self.end(id, End::Reason(FinishReason::Exported));
        }
    }

    /// Hands a request over; one whose import is in flight as soon as that has landed.
    pub(super) fn export(&mut self, id: u64) {
        match self.importing.get_mut(&id) {
            Some(arrival) => arrival.export = true,
            None => self.end(id, End::Reason(FinishReason::Exported)),
        }
    }

    // ---- events out ----

    /// Queues a group of events, or keeps it and pauses the sequence until there is room.
    pub(super) fn emit(&mut self, id: u64, mut events: Vec<Event>) {
        let Some(active) = self.active.get_mut(&id) else { return };
        if active.outbox.is_empty() && self.shared.queue.push(&mut events, &self.space) {
            return;
        }
        if active.outbox.is_empty() {
            self.stalled.push(id);
            self.scheduler.pause(id);
        }
        active.outbox.push_back(events);
    }

    pub(super) fn flush_stalled(&mut self) {
        for id in std::mem::take(&mut self.stalled) {
            let Some(active) = self.active.get_mut(&id) else { continue };
            while let Some(events) = active.outbox.front_mut() {
                if !self.shared.queue.push(events, &self.space) {
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

    // ---- out ----

    /// Ends a request behind the events it still owes.
    pub(super) fn end(&mut self, id: u64, end: End) {
        let Some(active) = self.active.get_mut(&id) else { return };
        if active.outbox.is_empty() {
            self.finish(id, end);
        } else {
            active.end.get_or_insert(end);
        }
    }

    /// Ends a request at once; tokens that the host has not made room for are dropped.
    pub(super) fn end_now(&mut self, id: u64, error: Error) {
        match self.importing.remove(&id) {
            Some(arrival) => {
                self.forget_deadline(arrival.deadline, id);
                arrival.refuse(&error);
            }
            None => self.finish(id, End::Failed(error)),
        }
    }

    pub(super) fn end_overdue(&mut self) {
        let now = Instant::now();
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            self.end_now(id, Error::new(Status::Timeout, "the deadline passed"));
        }
    }

    pub(super) fn finish(&mut self, id: u64, end: End) {
        let Some(active) = self.active.remove(&id) else { return };
        self.forget_deadline(active.deadline, id);
        self.scheduler.remove(id);
        let _ = crate::failpoint::hit("engine.finish");
        let (mut reason, failure) = match end {
            End::Reason(reason) => (reason, None),
            End::Failed(error) => {
                crate::log!(Debug, "engine", "request {id:#x} ended: {error}");
                (FinishReason::Error, Some(error))
            }
        };
        let mut status = failure.as_ref().map(|error| error.status);
        let hands_over = active.hands_over(reason);
        // Bindings go last to first: the place last, also in a panic.
        let RunningRequest { place, table, streaming, snapshot, chain, .. } = active;
        let (index, cached_tokens) = (snapshot.generated(), snapshot.cached_tokens);
        let mut kv = 0;
        if hands_over {
            match self.hand_over(snapshot, streaming, table, reason) {
                Ok(handle) => {
                    self.shared.cache.kv().set_chain(handle, &chain);
                    kv = handle.0;
                }
                Err(error) => (reason, status) = (FinishReason::Error, Some(error.status)),
            }
        } else {
            if let Some(streaming) = streaming {
                streaming
                    .fail(failure.unwrap_or_else(|| Error::new(Status::Cancelled, "the request ended without KV")));
            }
            drop(table);
        }
        let mut event = finished(place.user_tag, id, reason, status);
        event.kv = kv;
        event.index = index;
        event.cached_tokens = cached_tokens;
        place.finish(event);
    }

    fn hand_over(
        &self,
        mut snapshot: Snapshot,
        streaming: Option<StreamingExport>,
        table: BlockTable,
        reason: FinishReason,
    ) -> Result<KvId> {
        snapshot.finished = matches!(reason, FinishReason::Stop | FinishReason::Length).then_some(reason);
        let started = monotonic_ns();
        let handle = match streaming {
            Some(streaming) => streaming.finish(snapshot, table),
            None => self.shared.cache.hand_over(snapshot, table),
        };
        self.shared.counters.export_ns_last.store(monotonic_ns() - started, std::sync::atomic::Ordering::Relaxed);
        handle
    }

    fn forget_deadline(&mut self, deadline: Option<Instant>, id: u64) {
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, id));
        }
    }
}
