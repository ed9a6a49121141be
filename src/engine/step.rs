//! The step thread: take what the host asked for, plan, run the model, sample, tell.

use super::blocks::ActiveBlocks;
use super::event::{Event, EventKind};
use super::prepare::Bounds;
use super::probe::Probe;
use super::queue::{Reservation, SpaceWaker};
use super::running::{End, PendingRequest, RunningRequest};
use super::sampler::Sampler;
use super::shared::{EngineShared, Work};
use super::{Role, batch};
use crate::backend::Batch;
use crate::backend::ComputeShare;
use crate::error::{Error, Result, Status};
use crate::kv::Waker;
use crate::model::decoder::Executor;
use crate::sampling;
use crate::scheduler::{Limits, Plan, Scheduler, SeqId};
use crate::sequence::{FinishReason, Snapshot};
use crate::sys::monotonic_ns;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long an engine that waits for blocks sleeps before it looks again unasked. Blocks that were taken and returned by
/// others while it planned are no news to the count it waits for.
const RELOOK: Duration = Duration::from_millis(200);

pub(super) struct StepLoop {
    pub(super) shared: Arc<EngineShared>,
    /// Called when a full queue has room again, and when there are more free blocks.
    pub(super) space: Weak<dyn SpaceWaker>,
    more_blocks: Waker,
    executor: Box<dyn Executor>,
    pub(super) bounds: Bounds,
    pub(super) scheduler: Scheduler,
    pub(super) active: HashMap<u64, RunningRequest>,
    /// Requests whose KV is still on its way.
    pub(super) importing: HashMap<u64, PendingRequest>,
    /// Of the open requests, whether they run or not.
    pub(super) deadlines: BTreeSet<(Instant, u64)>,
    /// Requests with events that the queue had no room for.
    pub(super) stalled: Vec<u64>,
    plan: Plan,
    /// Of the running step, empty between two.
    sampled: Vec<(SeqId, sampling::Sampled)>,
    batch: Batch,
    sampler: Sampler,
    probe: Probe,
    /// RequestGuard for the ENGINE_FAILED event, kept since creation.
    failure: Option<Reservation>,
}

impl StepLoop {
    pub fn new(
        shared: Arc<EngineShared>,
        executor: Box<dyn Executor>,
        bounds: Bounds,
        failure: Reservation,
    ) -> StepLoop {
        let space: Arc<dyn SpaceWaker> = shared.clone();
        let engine = Arc::downgrade(&shared);
        StepLoop {
            space: Arc::downgrade(&space),
            more_blocks: Arc::new(move || engine.upgrade().into_iter().for_each(|engine| engine.kick())),
            shared,
            executor,
            bounds,
            scheduler: Scheduler::new(),
            active: HashMap::new(),
            importing: HashMap::new(),
            deadlines: BTreeSet::new(),
            stalled: Vec::new(),
            plan: Plan::default(),
            sampled: Vec::new(),
            batch: Batch::default(),
            sampler: Sampler::default(),
            probe: Probe::default(),
            failure: Some(failure),
        }
    }

    /// Until the engine is destroyed. A fault ends all open requests and leaves the engine failed.
    pub fn run(mut self) {
        let served = crate::panics::catch(|| self.serve());
        if let Err(error) = &served {
            // Handling a fault failed as well.
            self.announce_failure(error);
        }
        let work = self.shared.leave();
        let error = served.err().unwrap_or_else(|| Error::new(Status::Shutdown, "the engine was destroyed"));
        // What this does not get to end, ends as it is dropped.
        let _ = crate::panics::catch(|| self.end_all(work, &error));
    }

    fn serve(&mut self) {
        // A first turn at once: there may be something to measure.
        let mut progress = true;
        loop {
            let work = self.shared.take(!progress, self.sleep_until());
            if work.stop {
                return self.end_all(work, &Error::new(Status::Shutdown, "the engine was destroyed"));
            }
            if let Some(error) = self.failed() {
                self.end_all(work, &error);
                progress = false;
                continue;
            }
            progress = match crate::panics::catch(|| self.turn(work)).and_then(|turn| turn) {
                Ok(progress) => progress,
                Err(error) => self.fail(&error),
            };
        }
    }

    fn sleep_until(&self) -> Option<Instant> {
        let relook = self.plan.blocked.then(|| Instant::now() + RELOOK);
        self.deadlines.first().map(|d| d.0).into_iter().chain(relook).min()
    }

    /// One turn of the loop; true if a step ran, so that another may follow at once.
    fn turn(&mut self, work: Work) -> Result<bool> {
        if let Some(streams) = work.streams {
            self.move_to(streams)?;
        }
        self.flush_stalled();
        for arrival in work.arrivals {
            self.arrive(arrival);
        }
        for id in work.landed {
            self.land(id);
        }
        for id in work.cancels {
            self.end_now(id, Error::new(Status::Cancelled, "cancelled"));
        }
        self.end_overdue();
        for id in work.exports {
            self.export(id);
        }
        let progress = self.step();
        self.publish_counts();
        if progress? {
            return Ok(true);
        }
        let idle = self.scheduler.running() + self.scheduler.waiting() + self.importing.len() == 0;
        if idle { self.probe.turn(&self.shared, &mut *self.executor) } else { Ok(false) }
    }

    // ---- faults ----

    /// Why the engine has failed, if it has. Only this thread makes it fail, and gives `failure` away then.
    fn failed(&self) -> Option<Error> {
        if self.failure.is_some() { None } else { self.shared.failure() }
    }

    fn fail(&mut self, error: &Error) -> bool {
        self.announce_failure(error);
        // Whatever state the fault left it in: nobody in it goes on.
        self.scheduler = Scheduler::new();
        self.plan = Plan::default();
        self.probe.abandon();
        self.end_all(Work::default(), error);
        false
    }

    fn announce_failure(&mut self, error: &Error) {
        crate::log!(Error, "engine", "the engine failed: {error}");
        self.shared.fail(error.clone());
        if let Some(reservation) = self.failure.take() {
            let mut event = Event::new(EventKind::EngineFailed, 0, 0);
            event.status = Some(error.status);
            reservation.finish(event);
        }
    }

    /// Ends every open request with the same error.
    fn end_all(&mut self, work: Work, error: &Error) {
        for arrival in work.arrivals.into_iter().chain(self.importing.drain().map(|(_, arrival)| arrival)) {
            arrival.refuse(error);
        }
        for id in self.active.keys().copied().collect::<Vec<_>>() {
            self.finish(id, End::Failed(error.clone()));
        }
        self.deadlines.clear();
        self.publish_counts();
    }

    /// Goes on in other streams, as on other multiprocessors.
    fn move_to(&mut self, streams: ComputeShare) -> Result<()> {
        // What is being measured is of the former.
        self.probe.abandon();
        self.executor.set_compute_share(streams)?;
        let multiprocessors = self.executor.multiprocessors();
        self.shared.counters.multiprocessors.store(multiprocessors, Relaxed);
        self.shared.budget.set_key(self.shared.cache.saturation_key(multiprocessors));
        Ok(())
    }

    // ---- one step ----

    fn limits(&mut self) -> Result<Limits> {
        let role = self.shared.role.load(Relaxed);
        self.executor.set_urgent(role == Role::Decode as u32)?;
        let counters = &self.shared.counters;
        if counters.role_in_effect.swap(role, Relaxed) != role {
            let since = counters.role_set_ns.load(Relaxed);
            counters.role_switch_ns_last.store(monotonic_ns().saturating_sub(since), Relaxed);
        }
        let max_sequences = self.shared.limits.max_sequences;
        Ok(Limits {
            max_sequences,
            max_batch_tokens: self.shared.budget.step(max_sequences),
            max_prefill_tokens: self.shared.prompt_tokens(),
        })
    }

    fn step(&mut self) -> Result<bool> {
        let limits = self.limits()?;
        let started = monotonic_ns();
        // Read before planning: blocks that come back meanwhile count as news.
        let available = self.shared.cache.kv().available_blocks();
        let mut blocks = ActiveBlocks::new(&self.shared, &mut self.active);
        self.scheduler.plan(&limits, started, &mut blocks, &mut self.plan);
        let hits = blocks.prefix_hits;
        self.shared.counters.prefix_hit_tokens.fetch_add(hits, Relaxed);
        self.shared.counters.preemptions.fetch_add(self.plan.preempted.len() as u64, Relaxed);
        if self.plan.items.is_empty() {
            // The other engines of the cache take and return blocks while this one plans: what was short was short of
            // the smaller of both counts, or of less still (see RELOOK).
            let kv = self.shared.cache.kv();
            let short_of = available.min(kv.available_blocks()) + 1;
            return Ok(self.plan.blocked && !kv.wake_when_free(short_of, &self.more_blocks));
        }
        batch::build(&self.plan, &self.active, self.shared.cache.block_tokens(), &mut self.batch);
        crate::failpoint::hit("engine.step")?;
        self.executor.run(&self.batch)?;
        self.sampler.begin(&mut *self.executor, &self.plan, &self.active, self.shared.cache.eos_ids())?;
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
        crate::log!(Trace, "engine", "step of {} sequences: {} us", self.plan.items.len(), took / 1000);
        Ok(true)
    }

    /// Books what the model computed, samples where a sequence's last token was in the batch.
    fn after_model(&mut self) -> Result<()> {
        let items = std::mem::take(&mut self.plan.items);
        let vocab = self.executor.vocab_size();
        let shared = self.shared.clone();
        let eos_ids = shared.cache.eos_ids();
        let mut rows = 0..;
        for item in &items {
            let row = if item.samples { rows.next() } else { None };
            let Some(active) = self.active.get_mut(&item.seq) else { continue };
            let computed = item.start + item.len;
            active.snapshot.computed = computed as u32;
            if !std::mem::replace(&mut active.begun, true) {
                // Not again after a preemption, when it would find its own blocks.
                active.snapshot.cached_tokens = active.prefix_hit.unwrap_or(active.snapshot.cached_tokens);
            }
            let generated = active.snapshot.generated() as usize;
            let prompt_end = active.snapshot.tokens.len() - generated;
            let of_prompt = computed.min(prompt_end).saturating_sub(item.start);
            self.shared.counters.prompt_tokens.fetch_add(of_prompt as u64, Relaxed);
            self.shared.cache.publish(active);
            active.advance();
            let Some(row) = row else { continue };
            match self.sampler.token(row, vocab, active, eos_ids) {
                Ok(sampled) => self.sampled.push((item.seq, sampled)),
                // One sequence's bad logits are that sequence's end, not its neighbours'.
                Err(error) => self.end_now(item.seq, error),
            }
        }
        self.plan.items = items;
        // Told of in one go: whoever polls wakes up once for a step, and not for each of its tokens.
        let mut sampled = std::mem::take(&mut self.sampled);
        sampled.drain(..).for_each(|(seq, token)| self.accept(seq, token));
        self.sampled = sampled;
        Ok(())
    }

    fn accept(&mut self, id: u64, sampled: sampling::Sampled) {
        let Some(active) = self.active.get_mut(&id) else { return };
        active.snapshot.tokens.push(sampled.token);
        active.counts.push(sampled.token);
        active.snapshot.last_logprob = sampled.logprob;
        active.snapshot.last_top = sampled.top;
        self.scheduler.append(id);
        self.shared.counters.generated_tokens.fetch_add(1, Relaxed);
        let events = active.token_events();
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

    pub(super) fn stop_reason(&self, snapshot: &Snapshot) -> Option<FinishReason> {
        let prompt_end = snapshot.tokens.len() - snapshot.generated() as usize;
        let limit = self.bounds.max_tokens() as usize;
        sampling::check(&snapshot.params, &snapshot.tokens, prompt_end, self.shared.cache.eos_ids(), limit)
    }

    fn publish_counts(&self) {
        let counters = &self.shared.counters;
        counters.running.store(self.scheduler.running() as u32, Relaxed);
        counters.waiting.store((self.scheduler.waiting() + self.importing.len()) as u32, Relaxed);
    }
}
