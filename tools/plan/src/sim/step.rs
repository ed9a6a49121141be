//! Steps: an engine takes up its messages, plans, and gives out tokens when the step ends.

use super::engine::Message;
use super::request::{End, FROM_KV, FROM_TOKENS, NOWHERE, decode_id, encode_id};
use super::run::{Event, Simulation};
use cleave::scheduler::NewSeq;

/// Time after which a closed stream sends its next request when one was rejected.
const REFUSED_NS: u64 = 100_000_000;

impl Simulation<'_> {
    pub(super) fn turn(&mut self, index: usize) {
        let mut inbox = std::mem::take(&mut self.engines[index].inbox);
        for message in inbox.drain(..) {
            match message {
                Message::Tokens(request) => self.add(index, request, FROM_TOKENS, 0),
                Message::Landed(request) => self.begin_from_kv(index, request),
            }
        }
        self.engines[index].inbox = inbox;
        let spec = &self.deployment.pools[self.engines[index].pool];
        let others = || self.engines.iter().enumerate().any(|(other, engine)| other != index && engine.busy);
        let cost = spec.disturbed.as_ref().filter(|_| others()).unwrap_or(&spec.cost);
        let engine = &mut self.engines[index];
        let duration = engine.plan(spec, cost, self.deployment.window, &mut self.requests, self.now_ns);
        engine.busy = duration.is_some();
        if let Some(ns) = duration {
            let (epoch, end_ns) = (engine.epoch, self.arrivals_ns);
            engine.busy_ns += (self.now_ns + ns).min(end_ns).saturating_sub(self.now_ns);
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

    pub(super) fn step_end(&mut self, index: usize) {
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

    pub(super) fn end(&mut self, index: usize, end: End) {
        (0..2).for_each(|stage| self.leave(index, stage));
        let request = &mut self.requests[index];
        assert!(request.end.is_none(), "request {index} ends twice");
        request.end = Some(end);
        self.open -= 1;
        // A client that is refused does not ask again at once.
        let pause_ns = if end == End::Rejected { REFUSED_NS } else { 0 };
        self.send_next(self.now_ns + pause_ns);
    }

    /// Takes a request from the engine of one of its stages.
    pub(super) fn leave(&mut self, index: usize, stage: usize) {
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
}
