//! Measures how many prompt tokens saturate the device ([`saturation`]). It runs on the step thread while the engine is idle,
//! one step at a time, so that a new request waits for one such step at most. To other engines on the device, such a step is
//! like a prompt of the same length.

use super::batch;
use super::budget::Claim;
use super::saturation::{self, Point, SMALLEST};
use super::shared::EngineShared;
use super::{ModelCache, Role};
use crate::backend::Batch;
use crate::error::{Result, Status};
use crate::model::decoder::Executor;
use crate::sys::monotonic_ns;

/// Number of measurements per size; their median counts.
const REPEATS: usize = 3;
/// Total time after which fewer measurements of a size are enough.
const ENOUGH_NS: u64 = 250_000_000;

/// The engine's measurement, if one is in progress, and the buffers for it.
#[derive(Default)]
pub(super) struct Probe {
    under_way: Option<UnderWay>,
    batch: Batch,
    nothing: Vec<f32>,
}

struct UnderWay {
    claim: Claim,
    points: Vec<Point>,
    /// Measured times of the current size.
    times: Vec<u64>,
    /// Whether the current size has run once, so that its memory is allocated and its kernels are loaded.
    warm: bool,
}

impl Probe {
    /// Runs one step of a measurement. Returns false if there is nothing to measure.
    pub fn turn(&mut self, shared: &EngineShared, executor: &mut dyn Executor) -> Result<bool> {
        if self.under_way.is_none() {
            // A decode engine computes few prompt tokens, so their throughput does not matter.
            if shared.role() == Role::Decode {
                return Ok(false);
            }
            let Some(claim) = shared.budget.claim() else { return Ok(false) };
            self.under_way = Some(UnderWay { claim, points: Vec::new(), times: Vec::new(), warm: false });
        }
        let Some(now) = &mut self.under_way else { return Ok(false) };
        let (most, possible) = room(&shared.cache);
        let Some(tokens) = saturation::next(&now.points, most) else {
            return self.end(executor, possible);
        };
        let mut table = shared.cache.table();
        if !table.reserve_free(tokens) {
            return self.end(executor, possible);
        }
        batch::build_probe(tokens, shared.cache.bounds().vocab_size, &table, &mut self.batch);
        let started = monotonic_ns();
        let launched = executor.launch(&self.batch);
        let ran = launched.and_then(|step| executor.collect_logits(&step, &[], &mut self.nothing));
        let took = monotonic_ns() - started;
        drop(table);
        match ran {
            Err(error) if error.status == Status::OutOfMemory => return self.end(executor, false),
            ran => ran?,
        }
        if !std::mem::replace(&mut now.warm, true) {
            return Ok(true);
        }
        now.times.push(took);
        if now.times.len() >= REPEATS || now.times.iter().sum::<u64>() >= ENOUGH_NS {
            now.times.sort_unstable();
            now.points.push(Point { tokens, ns: now.times[now.times.len() / 2] });
            now.times.clear();
            now.warm = false;
        }
        Ok(true)
    }

    /// Ends the measurement: chooses a step length and frees the memory used. If nothing was measured, it is tried again later,
    /// or never if it is not `possible`.
    fn end(&mut self, executor: &mut dyn Executor, possible: bool) -> Result<bool> {
        executor.release()?;
        let Some(UnderWay { claim, points, .. }) = self.under_way.take() else { return Ok(false) };
        let choice = saturation::choose(&points);
        if let Some(choice) = choice {
            crate::log!(
                Info,
                "engine",
                "{} prompt tokens per step saturate the device: {} tokens/s",
                choice.tokens,
                choice.rate
            );
        }
        if choice.is_some() || !possible {
            claim.settle(choice);
        }
        Ok(false)
    }

    /// Abandons the measurement, because the engine failed or moved to another share of the device.
    pub fn abandon(&mut self) {
        self.under_way = None;
    }
}

/// The longest step that uses at most half of the free blocks, and whether the cache is large enough to measure at all.
fn room(cache: &ModelCache) -> (usize, bool) {
    let longest = cache.bounds().max_tokens() as usize;
    let free = cache.kv().stats().blocks_free / 2 * cache.block_tokens();
    (longest.min(free), longest >= 2 * SMALLEST)
}
