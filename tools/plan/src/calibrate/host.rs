//! An engine's host: makes requests, and gathers the events of each.

use super::Plan;
use cleave::engine::{CacheOptions, Engine, EngineOptions, Event, EventKind, ModelCache, Queue, Request, Role};
use cleave::model::Model;
use std::collections::HashMap;
use std::sync::Arc;

/// Events by request.
pub(super) type Events = HashMap<u64, Vec<Event>>;

/// One cache, and the queue of its engines.
pub(super) struct Host {
    queue: Arc<Queue>,
    cache: Arc<ModelCache>,
    vocabulary: u64,
}

impl Host {
    pub fn new(model: &Arc<Model>, plan: &Plan) -> Result<Host, String> {
        let tokens = plan.batch * (plan.context + 64) + plan.budget + 64;
        let bytes = tokens as u64 as usize * model.info().kv_bytes_per_token as usize;
        // Without a prefix cache, so that repeated prompts are computed again.
        let options = CacheOptions { bytes: bytes as _, no_prefix_cache: true, ..CacheOptions::default() };
        let cache = ModelCache::create(model, &[], options).map_err(|error| error.to_string())?;
        let queue = Queue::new(1 << 16).map_err(|error| error.to_string())?;
        Ok(Host { queue, cache, vocabulary: u64::from(model.info().vocab_size) })
    }

    /// An engine with a budget for each step.
    pub fn engine(&self, plan: &Plan, budget: usize) -> Result<Engine, String> {
        let options = EngineOptions {
            role: Some(Role::Mixed),
            threads: plan.threads,
            max_batch_tokens: budget,
            ..EngineOptions::default()
        };
        Engine::create(&self.cache, &self.queue, options).map_err(|error| error.to_string())
    }

    /// A request for exactly `n` tokens after a prompt of `len` tokens.
    pub fn request(&self, len: usize, n: u32, salt: u64) -> Request {
        // Apart from the first few, which are often special.
        let token = |i: u64| ((i * 7919 + salt * 104_729 + 13) % (self.vocabulary - 8)) as u32 + 8;
        let mut request = Request { prompt: (0..len as u64).map(token).collect(), ..Request::default() };
        request.sampling.max_new_tokens = n;
        request.sampling.ignore_eos = true;
        request
    }

    /// Runs requests to their end.
    pub fn run(&self, engine: &Engine, requests: Vec<Request>) -> Result<Events, String> {
        let ids = submit(engine, requests)?;
        let (mut ended, mut all) = (0, HashMap::new());
        while ended < ids.len() {
            ended += self.poll(&mut all)?;
        }
        Ok(all)
    }

    /// Waits for events, adds them to those of their requests, and returns how many requests ended.
    pub fn poll(&self, all: &mut Events) -> Result<usize, String> {
        let (mut ended, mut events) = (0, Vec::new());
        self.queue.poll(&mut events, 256, None).map_err(|error| error.to_string())?;
        for event in &events {
            if event.kind == EventKind::Finished {
                if let Some(status) = event.status {
                    return Err(format!("a measurement failed: {status:?}"));
                }
                ended += 1;
            }
            all.entry(event.request).or_default().push(*event);
        }
        Ok(ended)
    }
}

/// Submits requests and returns their ids.
pub(super) fn submit(engine: &Engine, requests: Vec<Request>) -> Result<Vec<u64>, String> {
    let submitted = engine.submit(requests);
    match submitted.refused {
        Some(error) => Err(format!("a measurement was refused: {error}")),
        None => Ok(submitted.ids),
    }
}

/// Times of a request's tokens.
pub(super) fn token_times(events: &Events, request: u64) -> Vec<u64> {
    let of_it = events.get(&request).into_iter().flatten();
    of_it.filter(|event| event.kind == EventKind::Token).map(|event| event.timestamp_ns).collect()
}
