//! A host of the library with a time limit on every wait.

use cleave::engine::{CacheOptions, Engine, EngineOptions, Event, EventKind, ModelCache, Queue, Request, Role};
use cleave::model::Model;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub type Outcome<T> = Result<T, String>;

/// Events of each request.
pub type Events = HashMap<u64, Vec<Event>>;

pub fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

pub struct Host {
    pub queue: Arc<Queue>,
    pub cache: Arc<ModelCache>,
    pub until: Instant,
}

impl Host {
    /// A host with a cache of `tokens` tokens on device 0, without a prefix cache: repeated prompts are computed again.
    pub fn new(model: &Arc<Model>, tokens: usize, until: Instant) -> Outcome<Host> {
        let bytes = tokens.next_multiple_of(16) as u64 * model.info().kv_bytes_per_token;
        let options = CacheOptions { bytes, secret: Some([1; 32]), no_prefix_cache: true, ..CacheOptions::default() };
        let cache = ModelCache::create(model, &[0], options).map_err(words)?;
        Ok(Host { queue: Queue::new(1 << 18).map_err(words)?, cache, until })
    }

    pub fn engine(&self, role: Role, max_sequences: usize, max_batch_tokens: usize) -> Outcome<Engine> {
        let options =
            EngineOptions { role: Some(role), max_sequences, max_batch_tokens, threads: 1, ..EngineOptions::default() };
        Engine::create(&self.cache, &self.queue, options).map_err(words)
    }

    /// Submits the requests and collects all events until every request has ended.
    pub fn run(&self, engine: &Engine, requests: Vec<Request>) -> Outcome<Events> {
        let n = requests.len();
        let submitted = engine.submit(requests);
        match submitted.refused {
            Some(error) => Err(format!("a request was refused: {error}")),
            None => self.collect(n),
        }
    }

    /// Polls until this many requests have ended.
    pub fn collect(&self, n: usize) -> Outcome<Events> {
        let mut all = Events::new();
        let mut ended = 0;
        while ended < n {
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("out of time with {ended} of {n} requests done"));
            }
            let mut events = Vec::new();
            self.queue.poll(&mut events, 1024, Some(left.min(Duration::from_secs(1)))).map_err(words)?;
            for event in events {
                match event.kind {
                    EventKind::Finished if event.status.is_some() => {
                        return Err(format!("a request failed: {:?}", event.status));
                    }
                    EventKind::EngineFailed => return Err("the engine failed".to_string()),
                    EventKind::Finished => ended += 1,
                    _ => {}
                }
                all.entry(event.request).or_default().push(event);
            }
        }
        Ok(all)
    }
}

/// A prompt of `len` tokens of a vocabulary, different for each `salt`.
pub fn prompt(len: usize, vocab: u32, salt: u64) -> Vec<u32> {
    let most = u64::from(vocab) - 3;
    (0..len as u64).map(|i| ((i * 7919 + salt * 104_729 + 13) % most) as u32 + 3).collect()
}

/// A request for exactly `n` greedy tokens.
pub fn request(prompt: Vec<u32>, n: u32) -> Request {
    let mut request = Request { prompt, ..Request::default() };
    request.sampling.max_new_tokens = n;
    request.sampling.ignore_eos = true;
    request
}

/// Handles that the requests left.
pub fn handles(events: &Events) -> Vec<u64> {
    events.values().flatten().filter(|event| event.kind == EventKind::Finished).map(|event| event.kv).collect()
}

/// Tokens of all requests, in the order of the requests.
pub fn tokens(events: &Events) -> Vec<i32> {
    let mut ids: Vec<&u64> = events.keys().collect();
    ids.sort_unstable();
    ids.iter().flat_map(|id| &events[*id]).filter(|e| e.kind == EventKind::Token).map(|e| e.token).collect()
}

/// Tokens/s while all sequences generate, without their first `skip` tokens: from the last sequence to pass these to
/// the first to end.
pub fn steady_rate(events: &Events, skip: usize) -> Outcome<f64> {
    let times: Vec<Vec<u64>> = events
        .values()
        .map(|events| events.iter().filter(|e| e.kind == EventKind::Token).map(|e| e.timestamp_ns).collect())
        .collect();
    let none = || "a sequence without tokens".to_string();
    let begin = times.iter().map(|t| t.get(skip).copied()).max().flatten().ok_or_else(none)?;
    let end = times.iter().map(|t| t.last().copied()).min().flatten().ok_or_else(none)?;
    if end <= begin {
        return Err("the sequences did not overlap".to_string());
    }
    let inside = times.iter().flatten().filter(|time| **time > begin && **time <= end).count();
    Ok(inside as f64 / ((end - begin) as f64 / 1e9))
}
