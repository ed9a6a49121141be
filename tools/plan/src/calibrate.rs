//! Measures the steps of one real engine on this machine's CPU: prompt chunks of several lengths and positions, and decodes of
//! several batch sizes and contexts. The result is what [`crate::cost::Fitted`] fits.

use crate::cost::{Sample, StepWork};
use cleave::engine::{CacheOptions, Engine, EngineOptions, Event, EventKind, ModelCache, Queue, Request, Role};
use cleave::model::Model;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Scope of a calibration.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Threads of the engine.
    pub threads: usize,
    /// Token budget of a step, as the engine will have it in service.
    pub budget: usize,
    /// Longest context to measure.
    pub context: usize,
    /// Largest batch to measure.
    pub batch: usize,
    /// Measurements of each prompt chunk; their median counts.
    pub repeats: usize,
}

/// Tokens that each sequence of a decode generates while it is measured.
const GENERATED: u32 = 32;

/// Measures a model.
pub fn calibrate(directory: &Path, plan: &Plan) -> Result<Vec<Sample>, String> {
    let path = directory.to_str().ok_or_else(|| format!("{}: the path is not UTF-8", directory.display()))?;
    let model = Model::load(path).map_err(|error| error.to_string())?;
    let host = Host::new(&model, plan)?;
    let mut samples = Vec::new();
    for rows in powers(1, plan.budget) {
        samples.push(host.prefill(rows, 0, plan)?);
    }
    for rows in [plan.budget / 8, plan.budget].into_iter().filter(|&rows| rows > 1) {
        for start in [rows, 2 * rows, 4 * rows].into_iter().filter(|start| start + rows <= plan.context) {
            samples.push(host.prefill(rows, start, plan)?);
        }
    }
    for batch in powers(1, plan.batch) {
        for context in [32, plan.context / 4, plan.context - GENERATED as usize - 1] {
            samples.extend(host.decode(batch, context, plan)?);
        }
    }
    Ok(samples)
}

/// `first`, twice that, and so on, and `last`.
fn powers(first: usize, last: usize) -> Vec<usize> {
    let mut all: Vec<usize> = std::iter::successors(Some(first), |n| Some(n * 2)).take_while(|&n| n < last).collect();
    all.push(last);
    all
}

struct Host {
    queue: Arc<Queue>,
    cache: Arc<ModelCache>,
    vocabulary: u64,
}

impl Host {
    fn new(model: &Arc<Model>, plan: &Plan) -> Result<Host, String> {
        let tokens = plan.batch * (plan.context + 64) + 64;
        let bytes = tokens as u64 as usize * model.info().kv_bytes_per_token as usize;
        // Without a prefix cache, so that repeated prompts are computed again.
        let options = CacheOptions { bytes: bytes as _, no_prefix_cache: true, ..CacheOptions::default() };
        let cache = ModelCache::create(model, &[], options).map_err(|error| error.to_string())?;
        let queue = Queue::new(1 << 16).map_err(|error| error.to_string())?;
        Ok(Host { queue, cache, vocabulary: u64::from(model.info().vocab_size) })
    }

    fn engine(&self, plan: &Plan, budget: usize) -> Result<Engine, String> {
        let options = EngineOptions {
            role: Some(Role::Mixed),
            threads: plan.threads,
            max_batch_tokens: budget,
            ..EngineOptions::default()
        };
        Engine::create(&self.cache, &self.queue, options).map_err(|error| error.to_string())
    }

    /// The last step of a prompt of `start + rows` tokens in steps of `rows` tokens.
    fn prefill(&self, rows: usize, start: usize, plan: &Plan) -> Result<Sample, String> {
        let engine = self.engine(plan, rows.max(16))?;
        let mut times = Vec::new();
        // The first run allocates, and does not count.
        for salt in 0..=plan.repeats as u64 {
            self.run(&engine, vec![self.request(start + rows, 1, salt)])?;
            times.push(engine.metrics().step_ns_last as f64 / 1e9);
        }
        Ok(Sample::new(&StepWork::prefill(rows, start), median(times.split_off(1))))
    }

    /// Steps in which `batch` sequences with about `context` tokens generate. None if the first sequence ended before the last
    /// one began.
    fn decode(&self, batch: usize, context: usize, plan: &Plan) -> Result<Option<Sample>, String> {
        let engine = self.engine(plan, plan.budget)?;
        let requests = (0..batch as u64).map(|salt| self.request(context, GENERATED, salt)).collect();
        let events = self.run(&engine, requests)?;
        let tokens = |events: &Vec<Event>| -> Vec<u64> {
            events.iter().filter(|event| event.kind == EventKind::Token).map(|event| event.timestamp_ns).collect()
        };
        let times: Vec<Vec<u64>> = events.values().map(tokens).collect();
        // From the last first token to the first last token all sequences generate.
        let begin = times.iter().filter_map(|t| t.first()).max().copied().unwrap_or(0);
        let end = times.iter().filter_map(|t| t.last()).min().copied().unwrap_or(0);
        let inside = times[0].windows(2).filter(|pair| pair[0] >= begin && pair[1] <= end);
        let steps: Vec<f64> = inside.map(|pair| (pair[1] - pair[0]) as f64 / 1e9).collect();
        let middle = context as f64 + f64::from(GENERATED) / 2.0;
        Ok((!steps.is_empty()).then(|| Sample::new(&StepWork::decode(batch, middle), median(steps))))
    }

    /// A request for exactly `n` tokens after a prompt of `len` tokens.
    fn request(&self, len: usize, n: u32, salt: u64) -> Request {
        // Apart from the first few, which are often special.
        let token = |i: u64| ((i * 7919 + salt * 104_729 + 13) % (self.vocabulary - 8)) as u32 + 8;
        let mut request = Request { prompt: (0..len as u64).map(token).collect(), ..Request::default() };
        request.sampling.max_new_tokens = n;
        request.sampling.ignore_eos = true;
        request
    }

    fn run(&self, engine: &Engine, requests: Vec<Request>) -> Result<HashMap<u64, Vec<Event>>, String> {
        let submitted = engine.submit(requests);
        if let Some(error) = submitted.refused {
            return Err(format!("a measurement was refused: {error}"));
        }
        let mut all: HashMap<u64, Vec<Event>> = HashMap::new();
        let (mut ended, mut events) = (0, Vec::new());
        while ended < submitted.ids.len() {
            events.clear();
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
        }
        Ok(all)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
