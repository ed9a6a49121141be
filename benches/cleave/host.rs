//! A host like a server: submits, polls, and reads the time stamps of the events.

use cleave::engine::{CacheOptions, Engine, EngineOptions, Event, EventKind, ModelCache, Queue, Request, Role};
use cleave::model::Model;
use std::collections::HashMap;
use std::sync::Arc;

pub struct Host {
    pub queue: Arc<Queue>,
    pub cache: Arc<ModelCache>,
    pub threads: usize,
}

impl Host {
    pub fn new(model: &Arc<Model>, threads: usize) -> Host {
        Host { queue: Queue::new(1 << 16).unwrap(), cache: cache(model), threads }
    }

    /// A host with a prefix cache, as servers have one.
    pub fn with_prefix_cache(model: &Arc<Model>, threads: usize) -> Host {
        let cache = ModelCache::create(model, &[], options(model, false)).unwrap();
        Host { queue: Queue::new(1 << 16).unwrap(), cache, threads }
    }

    pub fn engine(&self, role: Role) -> Engine {
        let options = EngineOptions { role: Some(role), threads: self.threads, ..EngineOptions::default() };
        Engine::create(&self.cache, &self.queue, options).unwrap()
    }

    /// Submits the requests and collects all events until every request has ended.
    pub fn run(&self, engine: &Engine, requests: Vec<Request>) -> HashMap<u64, Vec<Event>> {
        let submitted = engine.submit(requests);
        if let Some(error) = submitted.refused {
            panic!("a bench request was refused: {error}");
        }
        self.collect(submitted.ids.len())
    }

    pub fn collect(&self, n: usize) -> HashMap<u64, Vec<Event>> {
        let mut all: HashMap<u64, Vec<Event>> = HashMap::new();
        let mut ended = 0;
        let mut events = Vec::new();
        while ended < n {
            events.clear();
            self.queue.poll(&mut events, 256, None).unwrap();
            for event in &events {
                if event.kind == EventKind::Finished {
                    assert!(event.status.is_none(), "a bench request failed: {event:?}");
                    ended += 1;
                }
                all.entry(event.request).or_default().push(*event);
            }
        }
        all
    }
}

/// Cache options without a prefix cache, so that repeated prompts are computed again.
pub fn cache(model: &Arc<Model>) -> Arc<ModelCache> {
    ModelCache::create(model, &[], options(model, true)).unwrap()
}

fn options(model: &Model, no_prefix_cache: bool) -> CacheOptions {
    let bytes = 8192 * model.info().kv_bytes_per_token;
    CacheOptions { bytes, secret: Some([1; 32]), no_prefix_cache, ..CacheOptions::default() }
}

/// A request for exactly `n` tokens after a prompt of `len` tokens.
pub fn request(len: usize, n: u32, salt: u64) -> Request {
    let prompt = (0..len as u64).map(|i| ((i * 7919 + salt * 104_729 + 13) % 31_000) as u32 + 3).collect();
    let mut request = Request { prompt, ..Request::default() };
    request.sampling.max_new_tokens = n;
    request.sampling.ignore_eos = true;
    request
}
