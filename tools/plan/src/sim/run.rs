//! The event loop: arrivals, steps, tokens and ends.

use super::deployment::{Deployment, Role};
use super::engine::{Engine, Message};
use super::request::{End, FROM_KV, FROM_TOKENS, NOWHERE, Request, Transfer, decode_id, encode_id};
use super::route::Router;
use super::{BLOCK_TOKENS, switch};
use crate::report::Gaps;
use crate::workload::{Arrival, Lengths, Workload};
use cleave::scheduler::NewSeq;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// Something that happens at a time.
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
    /// An engine is back.
    Back { engine: usize },
    /// Roles are reviewed.
    Review,
}

/// Time after which a request that found no engine asks again.
const ASK_AGAIN_NS: u64 = 100_000_000;

/// Result of a simulation.
pub struct Outcome {
    /// All requests, in the order of arrival.
    pub requests: Vec<Request>,
    /// Times between two tokens of a request.
    pub gaps: Gaps,
    /// Time of the last event.
    pub end_ns: u64,
    /// Busy time of each engine in nanoseconds, with its pool.
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
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    scheduled: u64,
    router: Router,
    closed: Option<Closed>,
    open: usize,
    pub moved_bytes: f64,
    gaps: Gaps,
    migrations: u64,
    switches: u64,
}

/// Streams that send a request after the other.
struct Closed {
    lengths: Lengths,
    until_ns: u64,
    random: ChaCha8Rng,
}

/// Runs a workload to its end.
pub fn simulate(deployment: &Deployment, workload: &Workload) -> Outcome {
    let mut simulation = Simulation::new(deployment);
    simulation.load(workload);
    simulation.run();
    let engines = &simulation.engines;
    Outcome {
        end_ns: simulation.now_ns,
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
            Workload::Open(arrivals) => arrivals.iter().for_each(|arrival| self.send(arrival.clone())),
            Workload::Closed { streams, lengths, until_ns, seed } => {
                let random = ChaCha8Rng::seed_from_u64(*seed);
                self.closed = Some(Closed { lengths: *lengths, until_ns: *until_ns, random });
                (0..*streams).for_each(|_| self.send_next());
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
            Event::StepEnd { .. } | Event::Arrived { .. } => {}
            Event::Fail { engine, back_after_ns } => self.fail(engine, back_after_ns),
            Event::Back { engine } => self.engines[engine].alive = true,
            Event::Review => self.review(),
        }
    }

    /// Schedules an event. Events of one time happen in the order in which they were scheduled.
    pub fn at(&mut self, at_ns: u64, event: Event) {
        self.scheduled += 1;
        self.events.push(Reverse((at_ns, self.scheduled, event)));
    }

    // ---- arriving ----

    fn send(&mut self, arrival: Arrival) {
        let request = self.requests.len();
        self.requests.push(Request::new(arrival.at_ns, arrival.prompt, arrival.output, arrival.blocks));
        self.open += 1;
        let overhead = (self.deployment.request_overhead * 1e9) as u64;
        self.at(arrival.at_ns + overhead, Event::Route { request });
    }

    fn send_next(&mut self) {
        let at_ns = self.now_ns;
        let Some(closed) = self.closed.as_mut().filter(|closed| at_ns < closed.until_ns) else { return };
        let (prompt, output) = closed.lengths.draw(&mut closed.random);
        self.send(Arrival { at_ns, prompt, output, blocks: Arc::new([]) });
    }

    fn route(&mut self, index: usize) {
        let request = &self.requests[index];
        let mut pick = |role| self.router.pick(&self.engines, role, request);
        let (from_tokens, from_kv) = match pick(Role::Mixed) {
            Some(engine) => (Some(engine), None),
            None => match (pick(Role::Decode), pick(Role::Prefill)) {
                // A decode engine computes prompts itself when nobody else does.
                (Some(decode), None) => (Some(decode), None),
                (Some(decode), Some(prefill)) => (Some(prefill), Some(decode)),
                (None, _) => (None, None),
            },
        };
        let Some(engine) = from_tokens else {
            return match self.engines.iter().any(|e| e.alive) || self.pending_return() {
                true => self.at(self.now_ns + ASK_AGAIN_NS, Event::Route { request: index }),
                false => self.end(index, End::Rejected),
            };
        };
        let last = from_kv.unwrap_or(engine);
        let fits = |tokens: usize, engine: usize| tokens.div_ceil(BLOCK_TOKENS) <= self.engines[engine].blocks.total();
        let (known, all) = (request.known(), request.prompt + request.output);
        if !fits(known, engine) || !fits(all, last) {
            return self.end(index, End::Rejected);
        }
        let request = &mut self.requests[index];
        request.prefill_only = from_kv.is_some();
        request.kv = Transfer::default();
        request.engines = [engine, from_kv.unwrap_or(NOWHERE)];
        request.uncomputed = known;
        for engine in [Some(engine), from_kv].into_iter().flatten() {
            self.engines[engine].open += 1;
        }
        self.engines[engine].backlog += known;
        self.deliver(engine, Message::Tokens(index));
    }

    fn pending_return(&self) -> bool {
        self.events.iter().any(|Reverse((_, _, event))| matches!(event, Event::Back { .. }))
    }

    /// Gives an engine a message, and lets it run if it is idle.
    pub fn deliver(&mut self, engine: usize, message: Message) {
        self.engines[engine].inbox.push(message);
        self.wake(engine);
    }

    /// Lets an idle engine plan, because something has changed for it.
    pub fn wake(&mut self, engine: usize) {
        let home = &mut self.engines[engine];
        if !home.busy && home.alive && !std::mem::replace(&mut home.waking, true) {
            self.at(self.now_ns, Event::Wake { engine });
        }
    }

    // ---- steps ----

    fn turn(&mut self, index: usize) {
        let mut inbox = std::mem::take(&mut self.engines[index].inbox);
        for message in inbox.drain(..) {
            match message {
                Message::Tokens(request) => self.add(index, request, FROM_TOKENS, 0),
                Message::Landed(request) => self.begin_from_kv(index, request),
            }
        }
        let engine = &mut self.engines[index];
        engine.inbox = inbox;
        let spec = &self.deployment.pools[engine.pool];
        let duration = engine.plan(spec, self.deployment.window, &mut self.requests, self.now_ns);
        engine.busy = duration.is_some();
        if let Some(ns) = duration {
            let epoch = engine.epoch;
            self.at(self.now_ns + ns, Event::StepEnd { engine: index, epoch });
        }
    }

    fn add(&mut self, engine: usize, index: usize, stage: usize, computed: usize) {
        let request = &self.requests[index];
        let known = request.known();
        self.engines[engine].scheduler.add(NewSeq {
            id: encode_id(index, stage),
            tokens: known,
            computed,
            max_tokens: if request.prefill_only && stage == FROM_TOKENS {
                known
            } else {
                request.prompt + request.output
            },
            priority: 0,
            now_ns: self.now_ns,
        });
    }

    /// Gives the client the token that the prefill engine sampled, and continues.
    fn begin_from_kv(&mut self, engine: usize, index: usize) {
        if !self.token(index) {
            let computed = self.requests[index].known() - 1;
            self.add(engine, index, FROM_KV, computed);
        }
    }

    fn step_end(&mut self, index: usize) {
        let plan = std::mem::take(&mut self.engines[index].plan);
        self.engines[index].scheduler.commit(&plan);
        for item in &plan.items {
            let (id, stage) = decode_id(item.seq);
            if self.requests[id].engines[stage] != index {
                continue;
            }
            let upto = item.start + item.len;
            let request = &mut self.requests[id];
            if stage == FROM_TOKENS && request.uncomputed > 0 {
                let engine = &mut self.engines[index];
                if request.uncomputed == request.known() {
                    engine.prefix_hits += item.start;
                }
                let left = (request.known() - upto).min(request.uncomputed);
                engine.backlog -= std::mem::replace(&mut request.uncomputed, left) - left;
            }
            if stage == FROM_TOKENS && self.deployment.prefix_cache && !request.blocks.is_empty() {
                let blocks = &mut self.engines[index].blocks;
                blocks.publish(&mut request.holds[stage], &request.blocks, upto.min(request.prompt));
            }
            if stage == FROM_TOKENS && request.prefill_only {
                if item.samples {
                    self.engines[index].scheduler.remove(item.seq);
                }
                self.prompt_computed(id, upto);
            } else if item.samples && !self.token(id) {
                self.engines[index].scheduler.append(item.seq);
            }
        }
        self.engines[index].plan = plan;
        self.turn(index);
    }

    /// Gives the client a token. Returns true if it was the last.
    fn token(&mut self, index: usize) -> bool {
        let now_ns = self.now_ns;
        let request = &mut self.requests[index];
        request.generated += 1;
        if request.generated == 1 {
            request.first_ns = now_ns;
        } else {
            self.gaps.add(now_ns - request.last_ns);
        }
        request.last_ns = now_ns;
        let over = request.generated >= request.output;
        if over {
            self.end(index, End::Finished);
        }
        over
    }

    // ---- ending ----

    fn end(&mut self, index: usize, end: End) {
        (0..2).for_each(|stage| self.leave(index, stage));
        let request = &mut self.requests[index];
        assert!(request.end.is_none(), "request {index} ends twice");
        request.end = Some(end);
        self.open -= 1;
        self.send_next();
    }

    /// Takes a request from the engine of one of its stages.
    pub fn leave(&mut self, index: usize, stage: usize) {
        let request = &mut self.requests[index];
        let engine = std::mem::replace(&mut request.engines[stage], NOWHERE);
        if engine == NOWHERE {
            return;
        }
        let home = &mut self.engines[engine];
        home.scheduler.remove(encode_id(index, stage));
        home.open -= 1;
        if stage == FROM_TOKENS {
            home.backlog -= std::mem::take(&mut request.uncomputed);
        }
        home.blocks.release(&mut request.holds[stage], &request.blocks);
        self.retry_imports(engine);
    }

    // ---- failures and switches ----

    fn fail(&mut self, failed: usize, back_after_ns: Option<u64>) {
        let at = |request: &Request| request.engines.contains(&failed);
        let hit: Vec<usize> = (0..self.requests.len()).filter(|&index| at(&self.requests[index])).collect();
        for index in hit {
            for stage in 0..2 {
                if self.requests[index].engines[stage] == failed {
                    self.requests[index].engines[stage] = NOWHERE;
                    self.requests[index].holds[stage] = Default::default();
                }
                self.leave_inbox(index, stage);
                self.leave(index, stage);
            }
            self.requests[index].attempt += 1;
            self.migrations += 1;
            self.at(self.now_ns + self.deployment.detection_ns, Event::Route { request: index });
        }
        let spec = &self.deployment.pools[self.engines[failed].pool];
        self.engines[failed].fail(spec);
        if let Some(after) = back_after_ns {
            self.at(self.now_ns + after, Event::Back { engine: failed });
        }
    }

    /// Removes what a living engine has not taken up yet.
    fn leave_inbox(&mut self, index: usize, stage: usize) {
        let engine = self.requests[index].engines[stage];
        if engine != NOWHERE {
            let of_it = |message: &Message| matches!(message, Message::Tokens(r) | Message::Landed(r) if *r == index);
            self.engines[engine].inbox.retain(|message| !of_it(message));
        }
    }

    fn review(&mut self) {
        let Some(switching) = &self.deployment.switching else { return };
        if let Some((engine, role)) = switch::decide(switching, self.deployment, &self.engines) {
            self.engines[engine].role = role;
            self.switches += 1;
            self.wake(engine);
        }
        self.at(self.now_ns + switching.every_ns, Event::Review);
    }
}
