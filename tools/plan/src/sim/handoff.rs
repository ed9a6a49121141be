//! Handoffs: KV moves from the prefill engine to the decode engine, in parts while the prompt is computed, or afterwards.

use super::engine::Message;
use super::request::{FROM_KV, FROM_TOKENS};
use super::run::{Event, Simulation};

impl Simulation<'_> {
    /// Takes note that the prefill engine has KV of the leading `upto` tokens.
    pub fn prompt_computed(&mut self, index: usize, upto: usize) {
        let request = &mut self.requests[index];
        request.kv.computed = request.kv.computed.max(upto);
        let complete = request.kv.computed == request.known();
        if self.deployment.links.streaming || complete {
            self.move_kv(index);
        }
    }

    /// Sends what is computed and not sent, as soon as the decode engine has blocks for the whole prompt.
    fn move_kv(&mut self, index: usize) {
        let request = &mut self.requests[index];
        let [from, to] = request.engines;
        if !request.kv.reserved {
            let known = request.known();
            if !self.engines[to].blocks.reserve(&mut request.holds[FROM_KV], known) {
                if !std::mem::replace(&mut request.kv.queued, true) {
                    self.engines[to].imports.push_back((index, request.attempt));
                }
                return;
            }
            request.kv.reserved = true;
        }
        let links = &self.deployment.links;
        let tokens = request.kv.computed - request.kv.sent;
        if tokens == 0 {
            return;
        }
        request.kv.sent = request.kv.computed;
        let (attempt, upto) = (request.attempt, request.kv.computed);
        // Each link serves its transfers one after the other, and a transfer is over when both of its links have served it. So no
        // link idles because the other end of a transfer is busy. The latency takes neither.
        let bytes = tokens as f64 * links.bytes_per_token;
        let takes_ns = (bytes / links.rate * 1e9) as u64;
        let now_ns = self.now_ns;
        let mut served = |engine: usize, link: usize| {
            let free_ns = &mut self.engines[engine].link_free_ns[link];
            *free_ns = now_ns.max(*free_ns) + takes_ns;
            *free_ns
        };
        let arrives = served(from, 0).max(served(to, 1));
        self.moved_bytes += bytes;
        self.at(arrives + (links.latency * 1e9) as u64, Event::Arrived { request: index, attempt, upto });
    }

    /// Takes note that KV of the leading `upto` tokens is at the decode engine. With all of it the request changes sides.
    pub fn kv_arrived(&mut self, index: usize, upto: usize) {
        let request = &mut self.requests[index];
        request.kv.arrived = request.kv.arrived.max(upto);
        if request.kv.arrived < request.known() {
            return;
        }
        let [from, to] = request.engines;
        self.leave(index, FROM_TOKENS);
        self.wake(from);
        self.deliver(to, Message::Landed(index));
    }

    /// Lets requests go on that waited for blocks of this engine, in their order.
    pub fn retry_imports(&mut self, engine: usize) {
        while let Some(&(index, attempt)) = self.engines[engine].imports.front() {
            let request = &self.requests[index];
            if request.attempt == attempt && request.engines[FROM_KV] == engine {
                self.move_kv(index);
                if !self.requests[index].kv.reserved {
                    return;
                }
            }
            self.engines[engine].imports.pop_front();
        }
    }
}
