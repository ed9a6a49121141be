//! A host in Rust for the engine tests: one queue, its engines, and the events of each request.
#![allow(dead_code)]

use cleave::engine::{CacheOptions, Engine, EngineOptions, Event, EventKind, ModelCache, Queue, Request, Role};
use cleave::error::Status;
use cleave::model::Model;
use cleave::sequence::FinishReason;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Limit for every wait, even on a busy machine or a simulated device; anything slower has hung.
const LONG: Duration = Duration::from_secs(300);

/// Directory that contains `models` and `tests`. CLEAVE_ROOT names it if a test runs without its sources.
pub fn root() -> String {
    std::env::var("CLEAVE_ROOT").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_string())
}

pub fn tiny_dir() -> String {
    format!("{}/models/tiny", root())
}

/// The shipped model, loaded once per test process.
pub fn tiny() -> Arc<Model> {
    static TINY: OnceLock<Arc<Model>> = OnceLock::new();
    TINY.get_or_init(|| Model::load(&tiny_dir()).expect("models/tiny loads")).clone()
}

pub fn cache(options: CacheOptions) -> Arc<ModelCache> {
    ModelCache::create(&tiny(), &[], options).expect("a cache on the tiny model")
}

/// Creates a cache of `blocks` blocks of 16 tokens.
pub fn cache_of(blocks: u64) -> Arc<ModelCache> {
    cache(CacheOptions { bytes: blocks * 16 * tiny().info().kv_bytes_per_token, ..CacheOptions::default() })
}

/// Options for an engine with a fixed step length, so that an engine on a device does not measure one.
pub fn role(role: Role) -> EngineOptions {
    EngineOptions { role: Some(role), threads: 1, max_batch_tokens: 512, ..EngineOptions::default() }
}

/// Events of one request.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub tokens: Vec<u32>,
    /// Bits of each token's logprob. They are equal only if the logits are.
    pub logprobs: Vec<u32>,
    /// Alternatives of each token as (id, bits of the logprob).
    pub top: Vec<Vec<(u32, u32)>>,
    pub indices: Vec<u32>,
    pub end: Option<Event>,
}

impl Outcome {
    pub fn reason(&self) -> FinishReason {
        self.end.expect("a FINISHED event").finish.expect("a reason")
    }
}

pub struct Host {
    pub queue: Arc<Queue>,
    pub outcomes: HashMap<u64, Outcome>,
    pub others: Vec<Event>,
}

impl Host {
    pub fn new() -> Host {
        Host::with_capacity(0)
    }

    pub fn with_capacity(capacity: usize) -> Host {
        Host { queue: Queue::new(capacity).unwrap(), outcomes: HashMap::new(), others: Vec::new() }
    }

    pub fn engine(&self, cache: &Arc<ModelCache>, options: EngineOptions) -> Engine {
        Engine::create(cache, &self.queue, options).expect("an engine")
    }

    pub fn submit(&self, engine: &Engine, request: Request) -> u64 {
        let submitted = engine.submit(vec![request]);
        match submitted.refused {
            None => submitted.ids[0],
            Some(error) => panic!("refused: {error}"),
        }
    }

    /// Submits on a small queue that earlier requests may have filled. Polls only as often as necessary.
    pub fn squeeze(&mut self, engine: &Engine, request: Request) -> u64 {
        loop {
            let submitted = engine.submit(vec![request.clone()]);
            match submitted.refused {
                None => return submitted.ids[0],
                Some(error) if error.status == Status::WouldBlock => _ = self.poll(Duration::from_millis(10)),
                Some(error) => panic!("refused: {error}"),
            }
        }
    }

    /// Polls once and waits at most `timeout` for the first event.
    pub fn poll(&mut self, timeout: Duration) -> usize {
        let mut events = Vec::new();
        let n = self.queue.poll(&mut events, 64, Some(timeout)).unwrap();
        for event in events {
            self.take(event);
        }
        n
    }

    fn take(&mut self, event: Event) {
        if event.request == 0 {
            self.others.push(event);
            return;
        }
        let outcome = self.outcomes.entry(event.request).or_default();
        assert!(outcome.end.is_none(), "an event after FINISHED: {event:?}");
        match event.kind {
            EventKind::Token => {
                outcome.tokens.push(event.token as u32);
                outcome.logprobs.push(event.logprob.to_bits());
                outcome.indices.push(event.index);
                outcome.top.push(Vec::new());
            }
            EventKind::TopLogprob => outcome
                .top
                .last_mut()
                .expect("alternatives follow a token")
                .push((event.token as u32, event.logprob.to_bits())),
            EventKind::Finished => outcome.end = Some(event),
            other => panic!("unexpected {other:?} for a request"),
        }
    }

    /// Waits until the request has ended.
    pub fn finish(&mut self, id: u64) -> Outcome {
        let begun = Instant::now();
        while self.outcomes.get(&id).is_none_or(|o| o.end.is_none()) {
            assert!(begun.elapsed() < LONG, "request {id:#x} did not end");
            self.poll(Duration::from_secs(1));
        }
        self.outcomes[&id].clone()
    }

    pub fn run(&mut self, engine: &Engine, request: Request) -> Outcome {
        let id = self.submit(engine, request);
        self.finish(id)
    }

    /// Waits until the request has `n` tokens or has ended.
    pub fn tokens(&mut self, id: u64, n: usize) {
        let begun = Instant::now();
        while self.outcomes.get(&id).is_none_or(|o| o.tokens.len() < n && o.end.is_none()) {
            assert!(begun.elapsed() < LONG, "request {id:#x} gave too few tokens");
            self.poll(Duration::from_secs(1));
        }
    }
}

/// A request for exactly `n` greedy tokens after `prompt`, with logprobs.
pub fn request(prompt: &[u32], n: u32) -> Request {
    let mut request = Request { prompt: prompt.to_vec(), ..Request::default() };
    request.sampling.max_new_tokens = n;
    request.sampling.ignore_eos = true;
    request.sampling.logprobs = Some(2);
    request
}

/// The same as `request`, but sampled at temperature 1.
pub fn sampled(prompt: &[u32], n: u32, seed: u64) -> Request {
    let mut request = request(prompt, n);
    request.sampling.temperature = 1.0;
    request.sampling.top_p = 0.95;
    request.sampling.seed = seed;
    request
}

/// A continuation of `kv` with the parameters stored in the handle.
pub fn continuation(kv: u64) -> Request {
    Request { kv, ..Request::default() }
}

/// A prompt of `n` tokens, different for each `salt`.
pub fn prompt(n: usize, salt: u64) -> Vec<u32> {
    let vocab = u64::from(tiny().info().vocab_size);
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state >> 33
    };
    (0..n).map(|_| (next() % vocab) as u32).collect()
}

/// Waits until only the prefix index holds blocks. Fails if a block is leaked.
pub fn assert_quiescent(cache: &Arc<ModelCache>) {
    let begun = Instant::now();
    loop {
        let audit = cache.kv().audit();
        assert_eq!(audit.leaked, 0, "{audit:?}");
        if audit.by_requests + audit.by_transfers + audit.by_exports == 0 {
            assert_eq!(audit.free + audit.by_prefix_index, audit.total, "{audit:?}");
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "blocks still held: {audit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
