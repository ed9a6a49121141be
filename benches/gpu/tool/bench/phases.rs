//! Phases that measure one model.

use super::model::Shape;
use super::report::{Bound, Report};
use super::{Options, Outcome, Plan, locked, words};
use crate::tool::host::{Host, handles, prompt, request, steady_rate};
use cleave::backend::devices;
use cleave::engine::{EventKind, Request, Role};
use cleave::kv::KvId;
use cleave::model::Model;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Memory to leave for activations and the driver.
const RESERVE: u64 = 5 << 30;
/// Tokens of each sequence before its steps are recorded as graphs.
const SKIP: usize = 8;

pub struct Bench {
    pub(super) shape: Shape,
    pub host: Host,
    /// Number of tokens that its pool holds.
    tokens: usize,
    pub(super) chunk: usize,
}

impl Bench {
    /// Creates the first cache on the device with its first engine, then a second engine.
    pub fn start(
        options: &Options,
        plan: &Plan,
        report: &Mutex<Report>,
        shape: Shape,
        model: Arc<Model>,
        begun: Instant,
        until: Instant,
    ) -> Outcome<Bench> {
        let info = model.info();
        let free = devices::info(0).map_err(words)?.free_bytes;
        let sequence = plan.context + plan.new_tokens + 48;
        let most = plan.batches.iter().map(|batch| batch * sequence).chain(plan.prompts.iter().map(|n| n + 64)).max();
        let reserve = if options.simulated { 0 } else { RESERVE };
        let fits = free.saturating_sub(info.weight_bytes + reserve) / info.kv_bytes_per_token;
        // Long enough to choose the length of a step as well.
        let tokens = most.unwrap_or(1).max(4096).min(fits as usize).max(16);
        let host = Host::new(&model, tokens, until)?;
        let chunk = options.chunk;
        let first = host.engine(Role::Mixed, 64, chunk)?;
        let cold = begun.elapsed().as_secs_f64();
        host.run(&first, vec![request(prompt(8, info.vocab_size, 0), 2)])?;
        let bench = Bench { shape, host, tokens, chunk };
        if options.wants("start") {
            let what = "first cache and engine, weights from page cache";
            locked(report).add(shape.name, what, cold, "s", Bound::None, None);
            let mut warm = f64::MAX;
            for _ in 0..3 {
                let begun = Instant::now();
                let engine = bench.host.engine(Role::Decode, 64, chunk)?;
                warm = warm.min(begun.elapsed().as_secs_f64() * 1e3);
                drop(engine);
            }
            locked(report).add(shape.name, "second engine, created", warm, "ms", Bound::Most(5.0), None);
        }
        Ok(bench)
    }

    pub(super) fn prompt(&self, len: usize, salt: u64) -> Vec<u32> {
        prompt(len, self.shape.vocab as u32, salt)
    }

    pub(super) fn release(&self, handles: &[u64]) -> Outcome<()> {
        handles
            .iter()
            .filter(|kv| **kv != 0)
            .try_for_each(|kv| self.host.cache.kv().handles().release(KvId(*kv)))
            .map_err(words)
    }

    /// Measures one prompt alone, from its submission to its first token.
    pub fn prefill(&self, plan: &Plan, report: &Mutex<Report>) -> Outcome<()> {
        let engine = self.host.engine(Role::Prefill, 64, self.chunk)?;
        for &n in plan.prompts.iter().filter(|n| **n < self.tokens) {
            let mut best = f64::MAX;
            for salt in 0..plan.repeats.min(if n > 10_000 { 2 } else { 4 }) {
                let begun = cleave::sys::monotonic_ns();
                let events = self.host.run(&engine, vec![request(self.prompt(n, salt), 1)])?;
                let first = events.values().flatten().find(|event| event.kind == EventKind::Token);
                best = best.min((first.ok_or("no token")?.timestamp_ns - begun) as f64 / 1e9);
                self.release(&handles(&events))?;
            }
            let bound = Bound::Flops(self.shape.prefill_flops(n) / n as f64);
            let target = (n == 8192).then_some(0.70);
            locked(report).add(self.shape.name, &format!("prefill {n}"), n as f64 / best, "tokens/s", bound, target);
        }
        Ok(())
    }

    /// Measures decode of batches of prefilled sequences with one length.
    pub fn decode(&self, plan: &Plan, report: &Mutex<Report>) -> Outcome<()> {
        let most = plan.batches.iter().copied().max().unwrap_or(1);
        let prefill = self.host.engine(Role::Prefill, most, self.chunk)?;
        let decode = self.host.engine(Role::Decode, most, most.max(512))?;
        for &batch in &plan.batches {
            // The context that fits into memory, in whole blocks.
            let room = (self.tokens / batch / 16 * 16).saturating_sub(plan.new_tokens + 32);
            let context = if room >= plan.context { plan.context } else { room / 16 * 16 };
            if context == 0 {
                let what = format!("{}: decode batch {batch}", self.shape.name);
                locked(report).failures.push(format!("{what}: no room for it in the device's memory"));
                continue;
            }
            let requests = (0..batch as u64).map(|i| request(self.prompt(context, 100 + i), plan.new_tokens as u32));
            let kv = handles(&self.host.run(&prefill, requests.collect())?);
            let requests = kv.iter().map(|kv| Request { kv: *kv, ..Request::default() }).collect();
            let rate = steady_rate(&self.host.run(&decode, requests)?, SKIP)?;
            let average = context as f64 + (SKIP + plan.new_tokens) as f64 / 2.0;
            let bytes = self.shape.step_bytes() / batch as f64 + average * self.shape.kv_bytes_per_token();
            let target = match batch {
                1 => Some(0.85),
                256 => Some(0.70),
                _ => None,
            };
            let what = format!("decode batch {batch}, context {context}");
            locked(report).add(self.shape.name, &what, rate, "tokens/s", Bound::Bytes(bytes), target);
        }
        Ok(())
    }

    /// Measures a handoff between two engines over one cache: making the handle and taking it over.
    pub fn handoff(&self, plan: &Plan, report: &Mutex<Report>) -> Outcome<()> {
        let prefill = self.host.engine(Role::Prefill, 64, self.chunk)?;
        let decode = self.host.engine(Role::Decode, 64, 512)?;
        let n = plan.handoff;
        let mut best = f64::MAX;
        for salt in 0..plan.repeats {
            let events = self.host.run(&prefill, vec![request(self.prompt(n, 50 + salt), 3)])?;
            let requests = handles(&events).into_iter().map(|kv| Request { kv, ..Request::default() }).collect();
            self.host.run(&decode, requests)?;
            let took = prefill.metrics().export_ns_last + decode.metrics().handoff_ns_last;
            best = best.min(took as f64 / 1e3);
        }
        let what = format!("handoff of {n} tokens, same cache");
        locked(report).add(self.shape.name, &what, best, "us", Bound::Most(50.0), None);
        let moved = decode.metrics().kv_bytes_in as f64;
        locked(report).add(self.shape.name, &format!("{what}, moved"), moved, "bytes", Bound::None, None);
        Ok(())
    }

    /// Measures a role switch, from the request to the first step under the new role: on an idle engine, and with
    /// sequences in flight, where it waits for the running step.
    pub fn role(&self, plan: &Plan, report: &Mutex<Report>) -> Outcome<()> {
        let engine = self.host.engine(Role::Mixed, 64, 512)?;
        let switch = |wanted: Role| {
            engine.set_role(wanted).map_err(words)?;
            while engine.metrics().role != wanted as u32 {
                if Instant::now() > self.host.until {
                    return Err("the role did not change".to_string());
                }
                std::thread::yield_now();
            }
            Ok(engine.metrics().role_switch_ns_last as f64 / 1e6)
        };
        let wanted = |i: u64| if i.is_multiple_of(2) { Role::Decode } else { Role::Mixed };
        let mut idle = 0f64;
        for i in 0..8 {
            idle = idle.max(switch(wanted(i))?);
        }
        locked(report).add(self.shape.name, "role switch, idle, worst", idle, "ms", Bound::Most(1.0), None);

        let requests = (0..plan.in_flight).map(|i| request(self.prompt(24, i), 8 * plan.repeats as u32)).collect();
        if let Some(error) = engine.submit(requests).refused {
            return Err(error.to_string());
        }
        let mut times = Vec::new();
        'switches: for i in 0..plan.repeats + 1 {
            let before = engine.metrics().steps;
            while engine.metrics().steps < before + 3 {
                if Instant::now() > self.host.until || engine.metrics().running == 0 && i > 0 {
                    break 'switches;
                }
                std::thread::sleep(Duration::from_micros(50));
            }
            times.push(switch(wanted(i))?);
        }
        let longest = engine.metrics().step_ns_max as f64 / 1e6;
        self.host.collect(plan.in_flight as usize)?;
        let worst = times.into_iter().reduce(f64::max).ok_or("no switch while sequences ran")?;
        let what = "role switch under load, worst, against the longest step";
        locked(report).add(self.shape.name, what, worst, "ms", Bound::Most(longest), None);
        Ok(())
    }
}
