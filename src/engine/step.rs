//! The step thread. It takes the commands of host threads, plans a step, has it computed and sampled, and repeats.
//! [`super::table`] keeps the requests, and [`super::runner`] computes the rows.

use super::Role;
use super::counters::StepTokens;
use super::event::{Event, EventKind};
use super::inbox::Work;
use super::probe::Probe;
use super::queue::Reservation;
use super::runner::ModelRunner;
use super::shared::EngineShared;
use super::table::RequestTable;
use crate::backend::ComputeShare;
use crate::error::{Error, Result, Status};
use crate::kv::Waker;
use crate::model::decoder::{Executor, LaunchTicket};
use crate::scheduler::{Limits, Plan};
use crate::sys::monotonic_ns;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time after which an engine that waits for blocks plans again even without a wake-up. Blocks that other engines took and
/// returned during its plan do not raise the count of free blocks that it waits for.
const RELOOK: Duration = Duration::from_millis(200);

/// The step thread's state.
pub(super) struct StepLoop {
    shared: Arc<EngineShared>,
    table: RequestTable,
    runner: ModelRunner,
    plan: Plan,
    probe: Probe,
    /// Wakes the step thread when more blocks are free.
    more_blocks: Waker,
    /// Queue place reserved for the ENGINE_FAILED event. None once the engine has failed.
    failure: Option<Reservation>,
}

/// A step that was launched and is not collected yet.
struct Launched {
    started_ns: u64,
    ticket: LaunchTicket,
}

/// No step was launched, because no sequence can go on.
struct Starved {
    /// Number of blocks available before the plan was made.
    available: usize,
}

impl StepLoop {
    /// A loop over the requests of `shared`. `failure` is the queue place for an ENGINE_FAILED event.
    pub fn new(shared: Arc<EngineShared>, executor: Box<dyn Executor>, failure: Reservation) -> StepLoop {
        let engine = Arc::downgrade(&shared);
        StepLoop {
            table: RequestTable::new(shared.clone()),
            runner: ModelRunner::new(executor),
            plan: Plan::default(),
            probe: Probe::default(),
            more_blocks: Arc::new(move || engine.upgrade().into_iter().for_each(|engine| engine.inbox.kick())),
            failure: Some(failure),
            shared,
        }
    }

    /// Runs until the engine is destroyed. A fault ends all open requests and marks the engine as failed.
    pub fn run(mut self) {
        let served = crate::panics::catch(|| self.serve());
        if let Err(error) = &served {
            // Handling a fault failed as well.
            self.announce_failure(error);
        }
        let work = self.shared.inbox.leave();
        let error = served.err().unwrap_or_else(destroyed);
        // Requests that this does not reach end when their guards are dropped.
        let _ = crate::panics::catch(|| self.table.end_all(work.arrivals, &error));
    }

    fn serve(&mut self) {
        // The first turn does not wait, because there may be something to measure.
        let mut progress = true;
        loop {
            let work = self.shared.inbox.take(!progress, self.sleep_until());
            if work.stop {
                return self.table.end_all(work.arrivals, &destroyed());
            }
            if let Some(error) = self.failed() {
                self.table.end_all(work.arrivals, &error);
                progress = false;
                continue;
            }
            progress = match crate::panics::catch(|| self.turn(work)).and_then(|turn| turn) {
                Ok(progress) => progress,
                Err(error) => {
                    self.fail(&error);
                    false
                }
            };
        }
    }

    fn sleep_until(&self) -> Option<Instant> {
        let relook = self.plan.blocked.then(|| Instant::now() + RELOOK);
        self.table.earliest_deadline().into_iter().chain(relook).min()
    }

    /// Runs one turn of the loop. Returns true if a step ran, so that another may follow at once.
    fn turn(&mut self, work: Work) -> Result<bool> {
        if let Some(share) = work.compute_share {
            self.move_to(share)?;
        }
        self.table.flush_stalled();
        work.arrivals.into_iter().for_each(|pending| self.table.arrive(pending));
        work.landed.into_iter().for_each(|id| self.table.land(id));
        for id in work.cancels {
            self.table.fail(id, Error::new(Status::Cancelled, "cancelled"));
        }
        self.table.end_overdue();
        work.exports.into_iter().for_each(|id| self.table.export(id));
        let progress = self.step();
        self.table.publish_counts();
        if progress? {
            return Ok(true);
        }
        if self.table.is_idle() { self.probe.turn(&self.shared, self.runner.executor()) } else { Ok(false) }
    }

    // ---- one step ----

    /// Plans and runs one step. Returns true if another may follow at once. Launching and collecting are separate, so that a
    /// backend that can compute ahead could have the next step launched before this one is collected; none does yet.
    fn step(&mut self) -> Result<bool> {
        match self.launch()? {
            Ok(launched) => {
                self.collect(launched)?;
                Ok(true)
            }
            Err(starved) => Ok(self.wait_for_blocks(&starved)),
        }
    }

    /// Plans a step and starts to compute it, unless the plan is empty.
    fn launch(&mut self) -> Result<std::result::Result<Launched, Starved>> {
        let limits = self.limits()?;
        let started_ns = monotonic_ns();
        // Read before planning, so that blocks returned during the plan count as new.
        let available = self.shared.cache.kv().available_blocks();
        self.table.plan(&limits, started_ns, &mut self.plan);
        if self.plan.items.is_empty() {
            return Ok(Err(Starved { available }));
        }
        self.table.publish_counts();
        crate::failpoint::hit("engine.step")?;
        let ticket = self.runner.launch(&self.plan, self.table.running(), self.shared.cache.block_tokens())?;
        Ok(Ok(Launched { started_ns, ticket }))
    }

    /// Waits for a launched step, records the tokens it computed and samples the next ones.
    fn collect(&mut self, launched: Launched) -> Result<()> {
        let eos_ids = self.shared.cache.eos_ids();
        self.runner.collect(launched.ticket, &self.plan, self.table.running(), eos_ids)?;
        let prompt = self.table.commit(&self.plan, launched.started_ns);
        let (now_ns, mut generated) = (monotonic_ns(), 0);
        for (id, sampled) in self.runner.sample(&self.plan, self.table.running(), eos_ids) {
            generated += u64::from(sampled.is_ok());
            self.table.sampled(id, sampled, now_ns);
        }

        let (ended_ns, sequences) = (monotonic_ns(), self.plan.items.len());
        let tokens = StepTokens { sequences: sequences as u64, prompt, generated };
        self.shared.counters.stepped(launched.started_ns, ended_ns, tokens);
        let took_us = (ended_ns - launched.started_ns) / 1000;
        crate::log!(Trace, "engine", "step of {sequences} sequences: {took_us} us");
        Ok(())
    }

    /// Asks for a wake-up once more blocks are free, after a plan that stayed empty for want of blocks. Returns true if more are
    /// free already, so that the engine should plan again at once.
    fn wait_for_blocks(&mut self, starved: &Starved) -> bool {
        // Other engines of the cache take and return blocks while this one plans. The plan had at most the smaller of the two
        // counts, possibly less (see RELOOK).
        let kv = self.shared.cache.kv();
        let short_of = starved.available.min(kv.available_blocks()) + 1;
        self.plan.blocked && !kv.wake_when_free(short_of, &self.more_blocks)
    }

    fn limits(&mut self) -> Result<Limits> {
        let role = self.shared.role();
        self.runner.executor().set_urgent(role == Role::Decode)?;
        self.shared.counters.role_used(role, || self.table.occupancy());
        let max_sequences = self.shared.limits.max_sequences;
        Ok(Limits {
            max_sequences,
            max_batch_tokens: self.shared.budget.step(max_sequences),
            max_prefill_tokens: self.shared.prompt_tokens(),
        })
    }

    /// Moves the engine to another share of the device.
    fn move_to(&mut self, share: ComputeShare) -> Result<()> {
        // A measurement in progress belongs to the former share.
        self.probe.abandon();
        let executor = self.runner.executor();
        executor.set_compute_share(share)?;
        let multiprocessors = executor.multiprocessors();
        self.shared.counters.multiprocessors_changed(multiprocessors);
        self.shared.budget.set_key(self.shared.cache.saturation_key(multiprocessors));
        Ok(())
    }

    // ---- faults ----

    /// Error that made the engine fail, if it has failed. Only this thread makes the engine fail, and it then uses up `failure`.
    fn failed(&self) -> Option<Error> {
        if self.failure.is_some() { None } else { self.shared.inbox.failure() }
    }

    /// Ends every request after a fault and discards all state, which the fault may have left inconsistent.
    fn fail(&mut self, error: &Error) {
        self.announce_failure(error);
        self.plan = Plan::default();
        self.probe.abandon();
        self.table.abandon_all(error);
    }

    fn announce_failure(&mut self, error: &Error) {
        crate::log!(Error, "engine", "the engine failed: {error}");
        self.shared.inbox.fail(error.clone());
        if let Some(reservation) = self.failure.take() {
            let status = Some(error.status);
            reservation.finish(Event { status, ..Event::new(EventKind::EngineFailed, 0, 0) });
        }
    }
}

fn destroyed() -> Error {
    Error::new(Status::Shutdown, "the engine was destroyed")
}
