//! Measures the steps of one real engine on this machine's CPU: prompt chunks of several lengths and positions, decodes of
//! several batch sizes and contexts, and a few steps with both. The result is what [`crate::cost::Fitted`] fits.

mod host;
mod neighbour;

use crate::cost::{Sample, StepWork};
use crate::sim::Role;
use cleave::model::Model;
use host::{Host, submit, token_times};
use neighbour::Neighbour;
use std::collections::HashMap;
use std::path::Path;

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
    /// Role of a second engine that computes on the same machine during the measurement; None without one.
    pub beside: Option<Role>,
}

/// Tokens that each sequence of a decode generates while it is measured.
const GENERATED: u32 = 32;

/// Measures a model.
pub fn calibrate(directory: &Path, plan: &Plan) -> Result<Vec<Sample>, String> {
    let path = directory.to_str().ok_or_else(|| format!("{}: the path is not UTF-8", directory.display()))?;
    let model = Model::load(path).map_err(|error| error.to_string())?;
    let host = Host::new(&model, plan)?;
    let neighbour = plan.beside.map(|role| Neighbour::start(&model, role, plan)).transpose()?;
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
    for (batch, rows) in mixed_steps(plan) {
        samples.extend(host.mixed(batch, rows, plan)?);
    }
    neighbour.map_or(Ok(()), Neighbour::stop)?;
    Ok(samples)
}

/// `first`, twice that, and so on, and `last`.
fn powers(first: usize, last: usize) -> Vec<usize> {
    let mut all: Vec<usize> = std::iter::successors(Some(first), |n| Some(n * 2)).take_while(|&n| n < last).collect();
    all.push(last);
    all
}

/// Decoding sequences and rows of the mixed steps to measure: the longest steps, half and all of the largest batch. Their rows
/// are among those of the prompts, because each number of rows becomes a knot of the fit.
fn mixed_steps(plan: &Plan) -> Vec<(usize, usize)> {
    let batches = [plan.batch.div_ceil(2), plan.batch];
    let longest = powers(1, plan.budget).into_iter().rev().take(3);
    longest.flat_map(|rows| batches.map(|batch| (batch, rows))).filter(|(batch, rows)| *rows >= 2 * batch).collect()
}

impl Host {
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
        let times: Vec<Vec<u64>> = events.keys().map(|&id| token_times(&events, id)).collect();
        // From the last first token to the first last token all sequences generate.
        let begin = times.iter().filter_map(|t| t.first()).max().copied().unwrap_or(0);
        let end = times.iter().filter_map(|t| t.last()).min().copied().unwrap_or(0);
        let inside = times[0].windows(2).filter(|pair| pair[0] >= begin && pair[1] <= end);
        let steps: Vec<f64> = inside.map(|pair| (pair[1] - pair[0]) as f64 / 1e9).collect();
        let middle = context as f64 + f64::from(GENERATED) / 2.0;
        Ok((!steps.is_empty()).then(|| Sample::new(&StepWork::decode(batch, middle), median(steps))))
    }

    /// Steps of `rows` rows in which `batch` sequences generate while a whole prompt is computed. None if they ended before the
    /// first prompt began.
    fn mixed(&self, batch: usize, rows: usize, plan: &Plan) -> Result<Option<Sample>, String> {
        let engine = self.engine(plan, plan.budget)?;
        let context = plan.context / 2;
        let decodes = (0..batch as u64).map(|salt| self.request(context, GENERATED, salt)).collect();
        let decodes = submit(&engine, decodes)?;
        let mut events = HashMap::new();
        let (mut ended, mut prompts) = (0, Vec::new());
        while ended < batch + prompts.len() {
            // One prompt after the other, so that each is a step's only one.
            let all_decode = decodes.iter().all(|&id| !token_times(&events, id).is_empty());
            if all_decode && ended == prompts.len() && prompts.len() < plan.repeats {
                let prompt = self.request(rows - batch, 1, (batch + prompts.len()) as u64);
                prompts.extend(submit(&engine, vec![prompt])?);
            }
            ended += self.poll(&mut events)?;
        }
        let decoded: Vec<Vec<u64>> = decodes.iter().map(|&id| token_times(&events, id)).collect();
        let end = decoded.iter().filter_map(|times| times.last()).min().copied().unwrap_or(0);
        // The step of a prompt ends with the prompt's token.
        let step = |&prompt: &u64| {
            let at = *token_times(&events, prompt).first()?;
            let pair = decoded[0].windows(2).min_by_key(|pair| pair[1].abs_diff(at))?;
            (pair[1] <= end).then(|| (pair[1] - pair[0]) as f64 / 1e9)
        };
        let steps: Vec<f64> = prompts.iter().filter_map(step).collect();
        let middle = context as f64 + f64::from(GENERATED) / 2.0;
        let work = StepWork::decode(batch, middle) + StepWork::prefill(rows - batch, 0);
        Ok((!steps.is_empty()).then(|| Sample::new(&work, median(steps))))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
