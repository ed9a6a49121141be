//! An engine as host threads see it. Calls that change something leave a command in [`EngineShared`], where the step thread
//! finds it, so no such call waits for a step.

use super::budget::Budget;
use super::histogram::Histograms;
use super::load::{Load, LoadReading};
use super::pending::PendingRequest;
use super::shared::EngineShared;
use super::{EngineOptions, HistogramReading, Metrics, ModelCache, Queue, Request, Role, compute_share, source, step};
use crate::backend::Placement;
use crate::backend::cpu::bind_current_thread;
use crate::error::{Error, Result};
use crate::sys::monotonic_ns;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A running engine. Dropping it ends all open requests with SHUTDOWN.
pub struct Engine {
    shared: Arc<EngineShared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Outcome of submitting several requests: the first ones were accepted, and the next one may have been refused.
pub struct Submitted {
    /// Ids of the accepted requests, in the order of submission.
    pub ids: Vec<u64>,
    /// Reason why the first request that was not accepted was refused; None if all were accepted.
    pub refused: Option<Error>,
}

impl Engine {
    /// Creates an engine on `cache` that sends its events to `queue`, and starts its step thread.
    pub fn create(cache: &Arc<ModelCache>, queue: &Arc<Queue>, options: EngineOptions) -> Result<Engine> {
        let limits = options.limits()?;
        let role = options.role.unwrap_or(Role::Mixed);
        let share = compute_share::from_sm_percent(options.sm_percent)?;
        let place = Placement { threads: options.threads, cpus: options.cpus.clone(), sm_percent: share.unwrap_or(0) };
        let executor = cache.executor(place)?;
        let failure = queue.reserve()?;
        let fixed = (options.max_batch_tokens > 0).then_some(options.max_batch_tokens);
        let multiprocessors = executor.multiprocessors();
        let budget = Budget::new(fixed, cache.saturation_key(multiprocessors));
        let shared = Arc::new(EngineShared::new(cache.clone(), queue.clone(), limits, budget, role, share));
        shared.counters.multiprocessors_changed(multiprocessors);
        let stepper = step::StepLoop::new(shared.clone(), executor, failure);
        let (ready, bound) = crossbeam_channel::bounded(1);
        let thread = crate::sys::spawn("cleave-engine", move || {
            let outcome = if options.cpus.is_empty() { Ok(()) } else { bind_current_thread(&options.cpus) };
            let fine = outcome.is_ok();
            let _ = ready.send(outcome);
            if fine {
                stepper.run();
            }
        })?;
        bound.recv().map_err(|_| crate::error!(Internal, "the step thread ended before its first step"))??;
        crate::log!(
            Info,
            "engine",
            "created: {role:?} role, {} sequences, {} tokens per step",
            limits.max_sequences,
            shared.budget.step(limits.max_sequences)
        );
        compute_share::join(&shared);
        Ok(Engine { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Accepts requests in order until one is refused. Never waits for a step.
    pub fn submit(&self, requests: Vec<Request>) -> Submitted {
        let mut ids = Vec::with_capacity(requests.len());
        for request in requests {
            match self.submit_one(request) {
                Ok(id) => ids.push(id),
                Err(error) => return Submitted { ids, refused: Some(error) },
            }
        }
        Submitted { ids, refused: None }
    }

    fn submit_one(&self, request: Request) -> Result<u64> {
        let deadline = request.deadline.and_then(|d| Instant::now().checked_add(d));
        let guard = self.shared.admit(request.user_tag)?;
        let id = guard.id;
        let source = source::of_request(&self.shared, &request, id)?;
        let prefill_only = self.shared.role() == Role::Prefill;
        self.shared.inbox.arrive(PendingRequest { guard, request, prefill_only, deadline, export: false, source });
        Ok(id)
    }

    /// Asks the step thread to end a request; its FINISHED event follows. Fails with NOT_FOUND if that event is already out.
    pub fn cancel(&self, id: u64) -> Result<()> {
        self.shared.inbox.cancel(id)
    }

    /// Asks the step thread to end a generation with a KV handle, which its FINISHED event carries.
    pub fn export(&self, id: u64) -> Result<()> {
        self.shared.inbox.export(id)
    }

    /// Sets the role of requests accepted from now on, and of steps from the next one on. Requests accepted earlier continue
    /// under the role they were accepted with.
    pub fn set_role(&self, role: Role) -> Result<()> {
        self.shared.set_role(role);
        Ok(())
    }

    /// Moves the engine to another share of the device's multiprocessors from the next step on: 1 to 99 percent, 100 for all, 0
    /// for the default (see [`EngineOptions::sm_percent`]).
    pub fn set_sm_percent(&self, percent: u32) -> Result<()> {
        compute_share::set(&self.shared, compute_share::from_sm_percent(percent)?)
    }

    /// Refuses new requests and waits until all accepted ones have ended. After a TIMEOUT the engine keeps draining.
    pub fn drain(&self, timeout: Option<Duration>) -> Result<()> {
        self.shared.inbox.drain(timeout)
    }

    /// A reading of the engine's metrics and its cache's.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = self.shared.counters.read(self.shared.cache.metrics());
        metrics.prefill_step_tokens = self.shared.prompt_tokens() as u32;
        metrics.prefill_tokens_per_second = self.shared.budget.choice().map_or(0, |choice| choice.rate);
        metrics
    }

    /// A reading of the engine's load. Never waits for a step.
    pub fn load(&self) -> Load {
        let shared = &self.shared;
        let role_requested = shared.role();
        let (open, openness) = shared.inbox.openness();
        let now_ns = monotonic_ns();
        let LoadReading { occupancy, role, steps, throughput } = shared.counters.read_load(now_ns, open);
        Load {
            now_ns,
            occupancy,
            openness,
            role,
            role_requested,
            steps,
            throughput,
            blocks: shared.cache.kv().block_counts(),
            block_tokens: shared.cache.block_tokens(),
            max_sequences: shared.limits.max_sequences,
            max_waiting: shared.limits.max_waiting,
            max_batch_tokens: shared.budget.step(shared.limits.max_sequences),
            prefill_step_tokens: shared.prompt_tokens(),
        }
    }

    /// A reading of the engine's histograms, taken one after the other while the engine runs.
    pub fn histograms(&self) -> Vec<HistogramReading> {
        self.shared.counters.read_histograms()
    }

    /// Empty histograms: the names, texts and buckets that every engine has.
    pub fn histogram_list() -> Vec<HistogramReading> {
        Histograms::default().read()
    }

    /// The cache that the engine runs over.
    pub fn cache(&self) -> &Arc<ModelCache> {
        &self.shared.cache
    }

    /// Ends all open requests with SHUTDOWN and joins the step thread. Dropping the engine does the same.
    pub fn shutdown(&self) {
        self.shared.inbox.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
            compute_share::leave(&self.shared);
            crate::log!(Info, "engine", "destroyed");
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown();
    }
}
