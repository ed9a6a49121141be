//! The event loop: arrivals, steps, tokens and ends.

use super::deployment::Deployment;
use super::engine::Engine;
use super::request::Request;
use super::route::Router;
use crate::report::Gaps;
use crate::workload::{Lengths, Workload};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Time between the first requests of two closed streams. Real streams never begin at once: the first request begins a step
/// alone, and the others wait for its end. Streams that begin at once stay in lockstep for ever.
const STREAM_STAGGER_NS: u64 = 1_000_000;

/// An event of the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// A request reaches the router.
    Route { request: usize },
    /// An idle engine looks at its messages, after all others of the same time have come in.
    Wake { engine: usize },
    /// A step ends, unless the engine failed since.
    StepEnd { engine: usize, epoch: u32 },
    /// KV of the leading `upto` tokens has arrived, unless the request was routed anew since.
    Arrived { request: usize, attempt: u32, upto: usize },
    /// An engine fails.
    Fail { engine: usize, back_after_ns: Option<u64> },
    /// An engine is back, unless it failed again since.
    Back { engine: usize, epoch: u32 },
    /// Roles are reviewed.
    Review,
}

/// Result of a simulation.
pub struct Outcome {
    /// All requests, in the order of arrival.
    pub requests: Vec<Request>,
    /// Times between two tokens of a request.
    pub gaps: Gaps,
    /// Time of the last event.
    pub end_ns: u64,
    /// Time of the last arrival, or that until which streams send; the end if everything arrives at once.
    pub arrivals_ns: u64,
    /// Whether streams sent the requests.
    pub closed: bool,
    /// Busy time of each engine until `arrivals_ns` in nanoseconds, with its pool.
    pub busy: Vec<(usize, u64)>,
    /// Steps of all engines.
    pub steps: u64,
    /// Preemptions in all engines.
    pub preemptions: u64,
    /// Prompt tokens found in prefix caches.
    pub prefix_hits: usize,
    /// Bytes of KV that moved.
    pub moved_bytes: f64,
    /// Requests that were routed anew after a failure.
    pub migrations: u64,
    /// Role switches.
    pub switches: u64,
}

/// The state of a simulation.
pub(super) struct Simulation<'a> {
    pub deployment: &'a Deployment,
    pub now_ns: u64,
    pub engines: Vec<Engine>,
    pub requests: Vec<Request>,
    pub events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    scheduled: u64,
    pub router: Router,
    pub closed: Option<Closed>,
    /// See [`Outcome::arrivals_ns`]; the largest number while the end is not known.
    pub arrivals_ns: u64,
    pub open: usize,
    pub moved_bytes: f64,
    pub gaps: Gaps,
    pub migrations: u64,
    pub switches: u64,
}

/// Streams that send a request after the other.
pub(super) struct Closed {
    pub lengths: Lengths,
    pub until_ns: u64,
    pub random: ChaCha8Rng,
}

/// Runs a workload to its end.
pub fn simulate(deployment: &Deployment, workload: &Workload) -> Outcome {
    let mut simulation = Simulation::new(deployment);
    simulation.load(workload);
    simulation.run();
    let engines = &simulation.engines;
    Outcome {
        end_ns: simulation.now_ns,
        arrivals_ns: simulation.arrivals_ns.min(simulation.now_ns),
        closed: simulation.closed.is_some(),
        busy: engines.iter().map(|engine| (engine.pool, engine.busy_ns)).collect(),
        steps: engines.iter().map(|engine| engine.steps).sum(),
        preemptions: engines.iter().map(|engine| engine.preemptions).sum(),
        prefix_hits: engines.iter().map(|engine| engine.prefix_hits).sum(),
        moved_bytes: simulation.moved_bytes,
        migrations: simulation.migrations,
        switches: simulation.switches,
        gaps: simulation.gaps,
        requests: simulation.requests,
    }
}

impl<'a> Simulation<'a> {
    fn new(deployment: &'a Deployment) -> Simulation<'a> {
        let pools = deployment.pools.iter().enumerate();
        let engines = pools.flat_map(|(index, pool)| (0..pool.engines).map(move |_| Engine::new(index, pool)));
        let mut simulation = Simulation {
            deployment,
            now_ns: 0,
            engines: engines.collect(),
            requests: Vec::new(),
            events: BinaryHeap::new(),
            scheduled: 0,
            router: Router::new(deployment.routing),
            closed: None,
            arrivals_ns: u64::MAX,
            open: 0,
            moved_bytes: 0.0,
            gaps: Gaps::default(),
            migrations: 0,
            switches: 0,
        };
        for failure in &deployment.failures {
            simulation.at(failure.at_ns, Event::Fail { engine: failure.engine, back_after_ns: failure.back_after_ns });
        }
        if let Some(switching) = &deployment.switching {
            simulation.at(switching.every_ns, Event::Review);
        }
        simulation
    }

    fn load(&mut self, workload: &Workload) {
        match workload {
            Workload::Open(arrivals) => {
                let last_ns = arrivals.last().map_or(0, |arrival| arrival.at_ns);
                self.arrivals_ns = if last_ns > 0 { last_ns } else { u64::MAX };
                arrivals.iter().for_each(|arrival| self.send(arrival.clone()));
            }
            Workload::Closed { streams, lengths, until_ns, seed } => {
                self.arrivals_ns = *until_ns;
                let random = ChaCha8Rng::seed_from_u64(*seed);
                self.closed = Some(Closed { lengths: *lengths, until_ns: *until_ns, random });
                (0..*streams as u64).for_each(|stream| self.send_next(stream * STREAM_STAGGER_NS));
            }
        }
    }

    fn run(&mut self) {
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            // Reviews and failures alone keep nothing going.
            if self.open == 0 {
                break;
            }
            self.now_ns = at;
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Route { request } => self.route(request),
            Event::Wake { engine } => {
                self.engines[engine].waking = false;
                if !self.engines[engine].busy && self.engines[engine].alive {
                    self.turn(engine);
                }
            }
            Event::StepEnd { engine, epoch } if self.engines[engine].epoch == epoch => self.step_end(engine),
            Event::Arrived { request, attempt, upto } if self.requests[request].attempt == attempt => {
                self.kv_arrived(request, upto);
            }
            Event::Fail { engine, back_after_ns } => self.fail(engine, back_after_ns),
            Event::Back { engine, epoch } if self.engines[engine].epoch == epoch => self.engines[engine].alive = true,
            Event::StepEnd { .. } | Event::Arrived { .. } | Event::Back { .. } => {}
            Event::Review => self.review(),
        }
    }

    /// Schedules an event. Events of one time happen in the order in which they were scheduled.
    pub(super) fn at(&mut self, at_ns: u64, event: Event) {
        self.scheduled += 1;
        self.events.push(Reverse((at_ns, self.scheduled, event)));
    }
}
