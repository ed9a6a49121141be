//! The step thread: takes in what host threads asked for, plans a step, has it computed and sampled, and again. What becomes of
//! the requests is the table's business ([`super::table`]), what becomes of the rows the runner's ([`super::runner`]).

use super::Role;
use super::event::{Event, EventKind};
use super::probe::Probe;
use super::queue::Reservation;
use super::runner::ModelRunner;
use super::shared::{EngineShared, Work};
use super::table::RequestTable;
use crate::backend::ComputeShare;
use crate::error::{Error, Result, Status};
use crate::kv::Waker;
use crate::model::decoder::{Executor, LaunchTicket};
use crate::scheduler::{Limits, Plan};
use crate::sys::monotonic_ns;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// How long an engine that waits for blocks sleeps before it looks again unasked. Blocks that other engines took and returned
/// while it planned are not news to the count that it waits for.
const RELOOK: Duration = Duration::from_millis(200);

pub(super) struct StepLoop {
    shared: Arc<EngineShared>,
    table: RequestTable,
    runner: ModelRunner,
    plan: Plan,
    probe: Probe,
    /// Called when there are more free blocks.
    more_blocks: Waker,
    /// Keeps the queue's place for the ENGINE_FAILED event.
    failure: Option<Reservation>,
}

/// A step whose first half is done.
struct Launched {
    started_ns: u64,
    ticket: LaunchTicket,
}

/// Why no step was launched.
struct Starved {
    /// Blocks that were available before the plan was made.
    available: usize,
}

impl StepLoop {
    pub fn new(shared: Arc<EngineShared>, executor: Box<dyn Executor>, failure: Reservation) -> StepLoop {
        let engine = Arc::downgrade(&shared);
        StepLoop {
            table: RequestTable::new(shared.clone()),
            runner: ModelRunner::new(executor),
            plan: Plan::default(),
            probe: Probe::default(),
            more_blocks: Arc::new(move || engine.upgrade().into_iter().for_each(|engine| engine.kick())),
            failure: Some(failure),
            shared,
        }
    }

    /// Runs until the engine is destroyed. A fault ends all open requests and leaves the engine failed.
    pub fn run(mut self) {
        let served = crate::panics::catch(|| self.serve());
        if let Err(error) = &served {
            // Handling a fault failed as well.
            self.announce_failure(error);
        }
        let work = self.shared.leave();
        let error = served.err().unwrap_or_else(destroyed);
        // What this does not get to end, ends as it is dropped.
        let _ = crate::panics::catch(|| self.table.end_all(work.arrivals, &error));
    }

    fn serve(&mut self) {
        // The first turn comes at once: there may be something to measure.
        let mut progress = true;
        loop {
            let work = self.shared.take(!progress, self.sleep_until());
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

    /// One turn of the loop; true if a step ran, so that another may follow at once.
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

    /// Runs a step, if there is one to run. A backend that can compute ahead would have the next step launched before this one
    /// is collected; until there is one, collecting follows at once.
    fn step(&mut self) -> Result<bool> {
        match self.launch()? {
            Ok(launched) => {
                self.collect(launched)?;
                Ok(true)
            }
            Err(starved) => Ok(self.wait_for_blocks(&starved)),
        }
    }

    /// Plans a step and starts to compute it, unless no sequence can go on.
    fn launch(&mut self) -> Result<std::result::Result<Launched, Starved>> {
        let limits = self.limits()?;
        let started_ns = monotonic_ns();
        // Read before planning: blocks that come back meanwhile count as news.
        let available = self.shared.cache.kv().available_blocks();
        self.table.plan(&limits, started_ns, &mut self.plan);
        if self.plan.items.is_empty() {
            return Ok(Err(Starved { available }));
        }
        crate::failpoint::hit("engine.step")?;
        let ticket = self.runner.launch(&self.plan, self.table.running(), self.shared.cache.block_tokens())?;
        Ok(Ok(Launched { started_ns, ticket }))
    }

    /// Waits for a step that was launched, books what it computed and samples.
    fn collect(&mut self, launched: Launched) -> Result<()> {
        let eos_ids = self.shared.cache.eos_ids();
        self.runner.collect(launched.ticket, &self.plan, self.table.running(), eos_ids)?;
        self.table.commit(&self.plan, launched.started_ns);
        let now_ns = monotonic_ns();
        for (id, sampled) in self.runner.sample(&self.plan, self.table.running(), eos_ids) {
            self.table.sampled(id, sampled, now_ns);
        }

        let (ended_ns, sequences) = (monotonic_ns(), self.plan.items.len());
        self.shared.counters.stepped(launched.started_ns, ended_ns, sequences);
        let took_us = (ended_ns - launched.started_ns) / 1000;
        crate::log!(Trace, "engine", "step of {sequences} sequences: {took_us} us");
        Ok(())
    }

    /// After a plan without items for want of blocks: asks to be woken once there are more. True if there are already, so that
    /// another plan may do better.
    fn wait_for_blocks(&mut self, starved: &Starved) -> bool {
        // The other engines of the cache take and return blocks while this one plans: what was short was short of the smaller
        // of both counts, or of less still (see RELOOK).
        let kv = self.shared.cache.kv();
        let short_of = starved.available.min(kv.available_blocks()) + 1;
        self.plan.blocked && !kv.wake_when_free(short_of, &self.more_blocks)
    }

    fn limits(&mut self) -> Result<Limits> {
        let role = self.shared.role.load(Relaxed);
        self.runner.executor().set_urgent(role == Role::Decode as u32)?;
        let counters = &self.shared.counters;
        if counters.role.swap(role, Relaxed) != role {
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

    /// Goes on with another share of the device.
    fn move_to(&mut self, share: ComputeShare) -> Result<()> {
        // A measurement under way is of the former share.
        self.probe.abandon();
        let executor = self.runner.executor();
        executor.set_compute_share(share)?;
        let multiprocessors = executor.multiprocessors();
        self.shared.counters.multiprocessors.store(multiprocessors, Relaxed);
        self.shared.budget.set_key(self.shared.cache.saturation_key(multiprocessors));
        Ok(())
    }

    // ---- faults ----

    /// Why the engine has failed, if it has. Only this thread makes it fail, and gives `failure` away then.
    fn failed(&self) -> Option<Error> {
        if self.failure.is_some() { None } else { self.shared.failure() }
    }

    /// Ends every request after a fault. Whatever state the fault left the engine in, nothing in it goes on.
    fn fail(&mut self, error: &Error) {
        self.announce_failure(error);
        self.plan = Plan::default();
        self.probe.abandon();
        self.table.abandon_all(error);
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
}

fn destroyed() -> Error {
    Error::new(Status::Shutdown, "the engine was destroyed")
}
