//! Engines: one step thread each, over a cache that they share.
//!
//! Commands go in through an inbox ([`shared`]), events come out through a [`Queue`]; host threads never wait
//! for a step. [`step`] is the loop, [`requests`] how requests come in and end, [`guard`] why they end exactly once,
//! [`prepare`] what a request must satisfy to be accepted, [`cache`] what engines share, [`probe`] how the length of
//! prefill steps is measured and [`saturation`] how it is chosen.

mod batch;
mod blocks;
mod cache;
mod counters;
mod device_runtime;
mod event;
mod guard;
mod metrics;
mod prepare;
mod probe;
mod queue;
mod request;
mod requests;
mod running;
mod sampler;
mod saturation;
mod shared;
mod step;

pub use crate::backend::devices::DEVICE_CPU;
pub use cache::{CacheOptions, ModelCache};
pub use event::{Event, EventKind};
pub use metrics::Metrics;
pub use queue::{Queue, Reservation, SpaceWaker};
pub use request::{Request, SamplingFields};

use crate::backend::cpu::bind_current_thread;
use crate::error::{Error, Result};
use crate::kv::{Consumed, KvId};
use crate::sequence::Snapshot;
use crate::sys::monotonic_ns;
use guard::RequestGuard;
use prepare::{Bounds, prepare};
use running::{PendingRequest, SequenceSource};
use saturation::Budget;
use shared::{EngineLimits, EngineShared};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What an engine is for. The numbers are `CLEAVE_ROLE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    /// Prompts and generation in the same steps.
    Mixed = 0,
    /// A request ends with its first token and a handle; whole steps go to prompts.
    Prefill = 1,
    /// Made for handles; prompt tokens (a turn appended, a recomputation) take a small part of a step.
    Decode = 2,
}

impl Role {
    pub fn from_code(code: u32) -> Option<Role> {
        [Role::Mixed, Role::Prefill, Role::Decode].into_iter().find(|r| *r as u32 == code)
    }
}

/// Zero means default.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    pub role: Option<Role>,
    /// Sequences that run at once.
    pub max_sequences: usize,
    /// Accepted requests that wait beyond those.
    pub max_waiting: usize,
    /// Token budget of a step. 0: as many prompt tokens as saturate a CUDA device, measured in idle moments.
    pub max_batch_tokens: usize,
    pub threads: usize,
    /// While the role is decode: prompts with more tokens than this to compute are refused. 0: none are.
    pub local_prefill_tokens: usize,
    /// CPUs to run on; empty: where the system puts them.
    pub cpus: Vec<usize>,
    /// Of a CUDA device's multiprocessors, 1 to 99; 0 or 100: all.
    pub sm_percent: u32,
}

impl EngineOptions {
    pub const DEFAULT_MAX_SEQUENCES: usize = 64;
    pub const DEFAULT_MAX_WAITING: usize = 1024;
    /// Where nothing was measured.
    pub const DEFAULT_MAX_BATCH_TOKENS: usize = saturation::DEFAULT_TOKENS;

    const MAX_THREADS: usize = 1024;

    fn limits(&self) -> Result<EngineLimits> {
        fn pick(name: &str, value: usize, default: usize, most: usize) -> Result<usize> {
            match value {
                0 => Ok(default),
                v if v > most => crate::bail!(InvalidArgument, "{name} {v} is over {most}"),
                v => Ok(v),
            }
        }
        pick("threads", self.threads, 0, Self::MAX_THREADS)?;
        let max_sequences = pick("max_sequences", self.max_sequences, Self::DEFAULT_MAX_SEQUENCES, 1 << 16)?;
        let max_batch_tokens =
            pick("max_batch_tokens", self.max_batch_tokens, Self::DEFAULT_MAX_BATCH_TOKENS, 1 << 16)?;
        Ok(EngineLimits {
            // Every running sequence has its token in each step.
            max_sequences: max_sequences.min(max_batch_tokens),
            max_waiting: pick("max_waiting", self.max_waiting, Self::DEFAULT_MAX_WAITING, 1 << 20)?,
            local_prefill_tokens: self.local_prefill_tokens,
        })
    }
}

/// A running engine. Dropping it ends everything still open with SHUTDOWN.
pub struct Engine {
    shared: Arc<EngineShared>,
    bounds: Bounds,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Outcome of a batch submit: the ids of the accepted ones, which are the first ones, and why the next one was
/// refused.
pub struct Submitted {
    pub ids: Vec<u64>,
    pub refused: Option<Error>,
}

impl Engine {
    pub fn create(cache: &Arc<ModelCache>, queue: &Arc<Queue>, options: EngineOptions) -> Result<Engine> {
        let limits = options.limits()?;
        let role = options.role.unwrap_or(Role::Mixed);
        let sm_percent = sm_percent(options.sm_percent)?;
        let place = crate::backend::Placement { threads: options.threads, cpus: options.cpus.clone(), sm_percent };
        let executor = cache.executor(place)?;
        let bounds = cache.bounds();
        let failure = queue.reserve()?;
        let fixed = (options.max_batch_tokens > 0).then_some(options.max_batch_tokens);
        let multiprocessors = executor.multiprocessors();
        let budget = Budget::new(fixed, cache.saturation_key(multiprocessors));
        let shared = Arc::new(EngineShared::new(cache.clone(), queue.clone(), limits, budget, role, sm_percent));
        shared.counters.multiprocessors.store(multiprocessors, Relaxed);
        let stepper = step::StepLoop::new(shared.clone(), executor, bounds, failure);
        let (ready, bound) = crossbeam_channel::bounded(1);
        let thread = crate::sys::spawn("cleave-engine", move || {
            let outcome = if options.cpus.is_empty() { Ok(()) } else { bind_current_thread(&options.cpus) };
            let fine = outcome.is_ok();
            let _ = ready.send(outcome);
            if fine {
                stepper.run();
            }
        })?;
        bound.recv().map_err(|_| crate::error!(Internal, "the step thread ended before it began"))??;
        crate::log!(
            Info,
            "engine",
            "created: {role:?}, {} sequences, {} tokens a step",
            limits.max_sequences,
            shared.budget.step(limits.max_sequences)
        );
        Ok(Engine { shared, bounds, thread: Mutex::new(Some(thread)) })
    }

    /// Accepts requests in order until one is refused. Takes no part in a step and never waits for one.
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
        let mut place = self.shared.admit(request.user_tag)?;
        let id = place.id;
        let source = self.source(&request, &mut place)?;
        let prefill_only = self.shared.role.load(Relaxed) == Role::Prefill as u32;
        self.shared.arrive(PendingRequest { place, request, prefill_only, deadline, export: false, source });
        Ok(id)
    }

    /// The sequence to run. The handle is taken last, when nothing else can refuse the request.
    fn source(&self, request: &Request, place: &mut RequestGuard) -> Result<SequenceSource> {
        let cache = &self.shared.cache;
        if request.kv == 0 {
            let snapshot = prepare(request, None, &self.bounds)?;
            self.check_local(&snapshot)?;
            return Ok(SequenceSource::Ready(Box::new(snapshot), cache.table()));
        }
        let kv = KvId(request.kv);
        let base = match cache.kv().peek(kv) {
            Ok(Some(base)) => base,
            Ok(None) => return self.claim(request, kv, place.id),
            Err(error) => {
                let source = self.recompute(request, kv, error)?;
                place.recomputed = true;
                return Ok(source);
            }
        };
        prepare(request, Some(Arc::unwrap_or_clone(base)), &self.bounds)?;
        let started = monotonic_ns();
        match cache.kv().consume(kv)? {
            Consumed::Pending => self.claim(request, kv, place.id),
            Consumed::Ready(snapshot, table) => {
                self.shared.counters.handed_off(monotonic_ns() - started);
                Ok(SequenceSource::Ready(Box::new(prepare(request, Some(snapshot), &self.bounds)?), table))
            }
        }
    }

    /// Of a handle whose KV did not come: its sequence, to be computed here if the request says so.
    fn recompute(&self, request: &Request, kv: KvId, error: Error) -> Result<SequenceSource> {
        let cache = &self.shared.cache;
        let Some(sequence) = cache.kv().failed_sequence(kv).filter(|_| request.recompute) else { return Err(error) };
        let base = Snapshot { computed: 0, ..Snapshot::clone(&sequence) };
        let snapshot = prepare(request, Some(base), &self.bounds)?;
        cache.kv().release(kv)?;
        self.shared.counters.recomputed.fetch_add(1, Relaxed);
        Ok(SequenceSource::Ready(Box::new(snapshot), cache.table()))
    }

    /// Refuses a prompt that is better prefilled elsewhere.
    fn check_local(&self, snapshot: &Snapshot) -> Result<()> {
        let most = self.shared.limits.local_prefill_tokens;
        let tokens = snapshot.tokens.len();
        if most == 0 || tokens <= most || self.shared.role.load(Relaxed) != Role::Decode as u32 {
            return Ok(());
        }
        let cached = self.shared.cache.cached_prefix(snapshot);
        if tokens - cached > most {
            crate::bail!(
                PrefillElsewhere,
                "{tokens} prompt tokens, {cached} of them cached: {} to compute, local_prefill_tokens is {most}",
                tokens - cached
            );
        }
        Ok(())
    }

    /// Takes a handle that is still on its way; what can be checked without it is checked now.
    fn claim(&self, request: &Request, kv: KvId, id: u64) -> Result<SequenceSource> {
        prepare::check_prompt(&request.prompt, self.bounds.vocab_size)?;
        let engine = Arc::downgrade(&self.shared);
        let landed = move || engine.upgrade().into_iter().for_each(|engine| engine.landed(id));
        Ok(SequenceSource::Importing(self.shared.cache.kv().claim(kv, Arc::new(landed))?))
    }

    /// Asks for the end of a request; its FINISHED event follows. NOT_FOUND once that is out.
    pub fn cancel(&self, id: u64) -> Result<()> {
        self.shared.cancel(id)
    }

    /// Asks for a running generation to be handed over: its FINISHED event carries the handle.
    pub fn export(&self, id: u64) -> Result<()> {
        self.shared.export(id)
    }

    /// Requests accepted from now on have the new role; steps follow it from the next one. What was accepted
    /// before keeps its meaning and goes on.
    pub fn set_role(&self, role: Role) -> Result<()> {
        self.shared.counters.role_set_ns.store(monotonic_ns(), Relaxed);
        self.shared.role.store(role as u32, Relaxed);
        self.shared.kick();
        Ok(())
    }

    /// Runs on another share of the device's multiprocessors from the next step on. What it takes for that is taken here,
    /// so that errors are the caller's, and the step thread only goes over.
    pub fn set_sm_percent(&self, percent: u32) -> Result<()> {
        let percent = sm_percent(percent)?;
        let mut now = self.shared.sm_percent.lock().unwrap_or_else(PoisonError::into_inner);
        if *now != percent {
            self.shared.replace_compute_share(self.shared.cache.compute_share(percent, *now)?);
            *now = percent;
        }
        Ok(())
    }

    /// Refuses new requests and waits until all accepted ones have ended. TIMEOUT leaves it draining.
    pub fn drain(&self, timeout: Option<Duration>) -> Result<()> {
        self.shared.drain(timeout)
    }

    pub fn metrics(&self) -> Metrics {
        let mut metrics = self.shared.counters.read(&self.shared.cache);
        metrics.prefill_step_tokens = self.shared.prompt_tokens() as u32;
        metrics.prefill_tokens_per_second = self.shared.budget.choice().map_or(0, |choice| choice.rate);
        metrics
    }

    /// Ends everything still open with SHUTDOWN and joins the step thread. Drop does the same.
    pub fn shutdown(&self) {
        self.shared.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
            crate::log!(Info, "engine", "destroyed");
        }
    }
}

/// 0 for all.
fn sm_percent(percent: u32) -> Result<u32> {
    match percent {
        0..100 => Ok(percent),
        100 => Ok(0),
        _ => crate::bail!(InvalidArgument, "sm_percent {percent} is over 100"),
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown();
    }
}
