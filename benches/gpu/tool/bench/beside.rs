//! The chosen length of prefill steps, and prefill beside decode on one device: in the steps of one engine, in two
//! engines with priorities, and in two engines with separate multiprocessors.

use super::phases::Bench;
use super::report::{Bound, Report};
use super::{Outcome, Plan, locked, words};
use crate::tool::host::{Events, handles, request};
use cleave::engine::{Engine, EngineOptions, Event, EventKind, Request, Role};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Number of long prompts that arrive while sequences generate.
const PROMPTS: u64 = 4;
/// Shares of the multiprocessors in percent, for prefill and for decode.
const SHARES: (u32, u32) = (70, 30);

/// Ways in which prefill and decode share the device.
#[derive(Clone, Copy)]
enum Way {
    Chunked,
    Priorities,
    Split,
}

impl Bench {
    /// Measures the length of prefill steps that an engine chooses, and their rate.
    pub fn step(&self, _plan: &Plan, report: &Mutex<Report>) -> Outcome<()> {
        let engine = self.host.engine(Role::Prefill, 64, 0)?;
        let begun = Instant::now();
        let metrics = loop {
            let metrics = engine.metrics();
            if metrics.prefill_tokens_per_second > 0 {
                break metrics;
            }
            if Instant::now() > self.host.until {
                return Err("no length was chosen".to_string());
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let took = begun.elapsed().as_secs_f64();
        let (n, rate) = (metrics.prefill_step_tokens as usize, metrics.prefill_tokens_per_second as f64);
        let mut report = locked(report);
        let name = self.shape.name;
        report.add(name, "prefill tokens per step, chosen", n as f64, "tokens", Bound::None, None);
        let bound = Bound::Flops(self.shape.prefill_flops(n) / n as f64);
        report.add(name, "prefill in steps of that length", rate, "tokens/s", bound, None);
        report.add(name, "choosing it, in idle moments", took, "s", Bound::None, None);
        Ok(())
    }

    /// Measures long prompts and generating sequences beside each other.
    pub fn split(&self, plan: &Plan, report: &Mutex<Report>) -> Outcome<()> {
        for way in [Way::Chunked, Way::Priorities, Way::Split] {
            let (what, (prefill, decode)) = (name(way), self.engines(way)?);
            let decode_on = decode.as_ref().unwrap_or(&prefill);
            let new_tokens = if plan.repeats > 1 { 400 } else { 12 };
            let running = (0..plan.in_flight).map(|i| request(self.prompt(24, 200 + i), new_tokens));
            let running = submit(decode_on, running.collect())?;
            // Wait until all of them generate.
            while decode_on.metrics().generated_tokens < 2 * plan.in_flight {
                if Instant::now() > self.host.until {
                    return Err(format!("{what}: no tokens came"));
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            let begun = cleave::sys::monotonic_ns();
            let prompts = (0..PROMPTS).map(|i| request(self.prompt(plan.handoff, 300 + i), 1));
            let prompts = submit(&prefill, prompts.collect())?;
            let events = self.host.collect(running.len() + prompts.len())?;
            self.release(&handles(&events))?;
            let ended = prompts.iter().filter_map(|id| tokens(&events, *id).last().copied()).max();
            let ended = ended.ok_or("no prompt gave a token")?;
            let rate = (PROMPTS as usize * plan.handoff) as f64 / ((ended - begun) as f64 / 1e9);
            let mut report = locked(report);
            report.add(self.shape.name, &format!("prefill beside decode, {what}"), rate, "tokens/s", Bound::None, None);
            let gaps = gaps(&events, &running, begun, ended);
            for (part, percent) in [("median", 50), ("99 %", 99)] {
                let Some(gap) = gaps.get(gaps.len() * percent / 100) else { continue };
                let row = format!("decode beside prefill, {what}: time between tokens, {part}");
                report.add(self.shape.name, &row, *gap as f64 / 1e6, "ms", Bound::None, None);
            }
        }
        Ok(())
    }

    /// The engine for prompts and, unless it is the same, the engine for generating.
    fn engines(&self, way: Way) -> Outcome<(Engine, Option<Engine>)> {
        let make = |role, sm_percent| {
            let (max_sequences, max_batch_tokens) = (64, self.chunk);
            let role = Some(role);
            let options = EngineOptions {
                role,
                max_sequences,
                max_batch_tokens,
                threads: 1,
                sm_percent,
                ..EngineOptions::default()
            };
            Engine::create(&self.host.cache, &self.host.queue, options).map_err(words)
        };
        Ok(match way {
            Way::Chunked => (make(Role::Mixed, 0)?, None),
            // 100: not in parts, which would be the default.
            Way::Priorities => (make(Role::Prefill, 100)?, Some(make(Role::Decode, 100)?)),
            Way::Split => (make(Role::Prefill, SHARES.0)?, Some(make(Role::Decode, SHARES.1)?)),
        })
    }
}

fn name(way: Way) -> String {
    match way {
        Way::Chunked => "chunked in one engine".to_string(),
        Way::Priorities => "two engines by priority".to_string(),
        Way::Split => format!("SM split {} / {}", SHARES.0, SHARES.1),
    }
}

fn submit(engine: &Engine, requests: Vec<Request>) -> Outcome<Vec<u64>> {
    let submitted = engine.submit(requests);
    match submitted.refused {
        Some(error) => Err(format!("a request was refused: {error}")),
        None => Ok(submitted.ids),
    }
}

/// Arrival times of a request's tokens.
fn tokens(events: &Events, id: u64) -> Vec<u64> {
    let of = |event: &&Event| event.kind == EventKind::Token;
    events.get(&id).map_or(Vec::new(), |events| events.iter().filter(of).map(|event| event.timestamp_ns).collect())
}

/// Times between tokens of one sequence, ascending: those while prompts were computed, or all if there are none.
fn gaps(events: &Events, ids: &[u64], begun: u64, ended: u64) -> Vec<u64> {
    let times: Vec<Vec<u64>> = ids.iter().map(|id| tokens(events, *id)).collect();
    let of = |within: &dyn Fn(u64) -> bool| {
        let pairs = times.iter().flat_map(|times| times.windows(2)).filter(|pair| within(pair[1]));
        let mut gaps: Vec<u64> = pairs.map(|pair| pair[1] - pair[0]).collect();
        gaps.sort_unstable();
        gaps
    };
    let beside = of(&|time| (begun..=ended).contains(&time));
    if beside.is_empty() { of(&|_| true) } else { beside }
}
