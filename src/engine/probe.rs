//! Measures how many prompt tokens saturate the device ([`saturation`]), on the step thread while the engine has nothing
//! else to do: one step at a time, so that what comes in waits for one of them at most. Other engines on the device share
//! it with each as they share it with any prompt of that length.

use super::saturation::{self, Claim, Point, SMALLEST};
use super::shared::EngineShared;
use super::{ModelCache, Role};
use crate::backend::{Batch, SeqSpan};
use crate::error::{Result, Status};
use crate::kv::BlockTable;
use crate::model::decoder::Executor;
use crate::sys::monotonic_ns;
use std::sync::atomic::Ordering::Relaxed;

/// Times of one size, of which the middle one counts.
const REPEATS: usize = 3;
/// Fewer are enough where they take so long together.
const ENOUGH_NS: u64 = 250_000_000;

/// A measurement under way.
#[derive(Default)]
pub(super) struct Probe {
    under_way: Option<UnderWay>,
    batch: Batch,
    nothing: Vec<f32>,
}

struct UnderWay {
    claim: Claim,
    points: Vec<Point>,
    /// Of the size that is next.
    times: Vec<u64>,
    /// It has run once: its memory and its kernels are there.
    warm: bool,
}

impl Probe {
    /// Runs one step of a measurement, if there is one to make. False if there is nothing to do.
    pub fn turn(&mut self, shared: &EngineShared, executor: &mut dyn Executor) -> Result<bool> {
        if self.under_way.is_none() {
            // A decode engine's few prompt tokens are not for throughput.
            if shared.role.load(Relaxed) == Role::Decode as u32 {
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
        fill(&mut self.batch, tokens, &table, shared.cache.bounds().vocab_size);
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

    /// Chooses, and gives back what it took. If nothing was measured it is left to another time, or if that is not
    /// `possible` given up for good.
    fn end(&mut self, executor: &mut dyn Executor, possible: bool) -> Result<bool> {
        executor.release()?;
        let Some(UnderWay { claim, points, .. }) = self.under_way.take() else { return Ok(false) };
        let choice = saturation::choose(&points);
        if let Some(choice) = choice {
            crate::log!(
                Info,
                "engine",
                "{} prompt tokens a step saturate the device: {} tokens/s",
                choice.tokens,
                choice.rate
            );
        }
        if choice.is_some() || !possible {
            claim.settle(choice);
        }
        Ok(false)
    }

    /// Gives up: the engine's executor is another.
    pub fn abandon(&mut self) {
        self.under_way = None;
    }
}

/// The longest step that leaves half of the free blocks alone, and whether the cache has room for one at all.
fn room(cache: &ModelCache) -> (usize, bool) {
    let longest = cache.bounds().max_tokens() as usize;
    let free = cache.kv().stats().blocks_free / 2 * cache.block_tokens();
    (longest.min(free), longest >= 2 * SMALLEST)
}

/// The first tokens of some prompt: a chunk that wants no logits.
fn fill(batch: &mut Batch, tokens: usize, table: &BlockTable, vocab: u32) {
    let n = tokens as u32;
    batch.tokens.clear();
    batch.tokens.extend((0..n).map(|i| (u64::from(i) * 7919 % u64::from(vocab.max(1))) as u32));
    batch.positions.clear();
    batch.positions.extend(0..n);
    batch.rope_lens.clear();
    batch.rope_lens.resize(tokens, n);
    batch.tables.clear();
    batch.tables.extend_from_slice(table.blocks());
    let table_len = batch.tables.len() as u32;
    batch.spans = vec![SeqSpan { row: 0, rows: n, position: 0, table: 0, table_len }];
    batch.logit_rows.clear();
}
