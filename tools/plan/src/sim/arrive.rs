//! Arrivals: requests are sent, routed, and reach their engines.

use super::BLOCK_TOKENS;
use super::deployment::Role;
use super::engine::Message;
use super::request::{End, NOWHERE, Request, Transfer};
use super::run::{Event, Simulation};
use crate::workload::Arrival;
use std::cmp::Reverse;
use std::sync::Arc;

/// Time after which a request that found no engine asks again.
const ASK_AGAIN_NS: u64 = 100_000_000;

impl Simulation<'_> {
    pub(super) fn send(&mut self, arrival: Arrival) {
        let request = self.requests.len();
        self.requests.push(Request::new(arrival.at_ns, arrival.prompt, arrival.output, arrival.blocks));
        self.open += 1;
        let overhead = (self.deployment.request_overhead * 1e9) as u64;
        self.at(arrival.at_ns + overhead, Event::Route { request });
    }

    /// Sends the next request of a closed stream, unless no request begins at that time any more.
    pub(super) fn send_next(&mut self, at_ns: u64) {
        let Some(closed) = self.closed.as_mut().filter(|closed| at_ns < closed.until_ns) else { return };
        let (prompt, output) = closed.lengths.draw(&mut closed.random);
        self.send(Arrival { at_ns, prompt, output, blocks: Arc::new([]) });
    }

    pub(super) fn route(&mut self, index: usize) {
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
            return match self.can_generate_again() {
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

    /// Whether there will be an engine that generates: one that returns, or a prefill engine that changes its role, of which one
    /// must remain.
    fn can_generate_again(&self) -> bool {
        let mut runs: Vec<bool> = self.engines.iter().map(|engine| engine.alive).collect();
        for Reverse((_, _, event)) in &self.events {
            match event {
                Event::Back { engine, epoch } => runs[*engine] |= self.engines[*engine].epoch == *epoch,
                Event::Fail { engine, back_after_ns: Some(_) } => runs[*engine] = true,
                _ => {}
            }
        }
        let running = self.engines.iter().zip(runs).filter(|(_, runs)| *runs);
        let (prefills, others): (Vec<Role>, Vec<Role>) =
            running.map(|(engine, _)| engine.role).partition(|role| *role == Role::Prefill);
        !others.is_empty() || (self.deployment.switching.is_some() && prefills.len() > 1)
    }

    /// Gives an engine a message, and lets it run if it is idle.
    pub(super) fn deliver(&mut self, engine: usize, message: Message) {
        self.engines[engine].inbox.push(message);
        self.wake(engine);
    }

    /// Lets an idle engine plan, because something has changed for it.
    pub(super) fn wake(&mut self, engine: usize) {
        let home = &mut self.engines[engine];
        if !home.busy && home.alive && !std::mem::replace(&mut home.waking, true) {
            self.at(self.now_ns, Event::Wake { engine });
        }
    }
}
