//! Random operations, run to completion: every sequence finishes whatever the pool, no token is lost or
//! computed twice (the model checks every plan), all blocks come back.

use super::model::{BLOCK, Engine, Pool};
use crate::scheduler::Limits;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// One operation: which, on what, how much.
type Op = (u8, u8, u16);

fn apply(op: Op, id: u64, engine: &mut Engine, pool: &mut Pool, blocks: usize) {
    let room = blocks * BLOCK;
    let (kind, pick, amount) = (op.0 % 8, op.1 as usize, op.2 as usize);
    // No sequence is larger than the pool.
    let tokens = 1 + amount % (room - 1);
    let generate = 1 + pick % 20.min(room - tokens + 1).max(1);
    let priority = (amount % 3) as u32;
    let chosen = engine.jobs.keys().copied().nth(pick % engine.jobs.len().max(1));
    match (kind, chosen) {
        (0..=2, _) => engine.add(id, tokens, generate, priority),
        (3, _) => {
            engine.import(pool, id, tokens, generate, priority);
        }
        (4, Some(id)) => engine.pause(id, true),
        (5, Some(id)) => engine.pause(id, false),
        (6, Some(id)) => engine.remove(pool, id),
        _ => pool.hit = amount % 64,
    }
}

fn finish(engines: &mut [Engine], limits: &[Limits], pool: &mut Pool, blocks: usize) -> Result<(), TestCaseError> {
    for engine in engines.iter_mut() {
        for id in engine.jobs.keys().copied().collect::<Vec<_>>() {
            engine.pause(id, false);
        }
    }
    let mut steps = 0;
    while engines.iter().any(|engine| !engine.scheduler.is_idle()) {
        let mut moved = false;
        for (engine, limits) in engines.iter_mut().zip(limits) {
            moved |= !engine.step(limits, pool).is_empty() || !engine.plan.preempted.is_empty();
            engine.now_ns += 1_000_000;
        }
        prop_assert!(moved, "nothing runs and nothing is given up");
        steps += 1;
        prop_assert!(steps < 200_000, "does not come to an end");
    }
    prop_assert_eq!(pool.free, blocks);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_finishes(
        ops in prop::collection::vec((any::<u8>(), any::<u8>(), any::<u16>()), 1..60),
        engines in 1..=2usize,
        blocks in 2..80usize,
        sequences in 1..10usize,
        batch in 1..100usize,
        prefill in 1..100usize,
        tick in 0..400_000_000u64,
    ) {
        let one = Limits { max_sequences: sequences, max_batch_tokens: batch + sequences, max_prefill_tokens: prefill };
        let other = Limits { max_sequences: 3, max_batch_tokens: 35, max_prefill_tokens: 32 };
        let limits = [one, other];
        let mut pool = Pool::new(blocks);
        let mut all = [Engine::default(), Engine::default()];
        let mut ids = BTreeSet::new();
        for (n, &op) in ops.iter().enumerate() {
            let which = n % engines;
            apply(op, n as u64, &mut all[which], &mut pool, blocks);
            ids.extend(all[which].jobs.keys().copied());
            if op.0 % 8 == 6 {
                ids.retain(|id| all.iter().any(|e| e.jobs.contains_key(id) || e.done.contains(id)));
            }
            all[which].now_ns += tick;
            all[which].step(&limits[which], &mut pool);
        }
        finish(&mut all[..engines], &limits, &mut pool, blocks)?;
        let mut done: Vec<_> = all.iter().flat_map(|e| e.done.iter().copied()).collect();
        done.sort_unstable();
        prop_assert_eq!(done, ids.into_iter().collect::<Vec<_>>());
    }
}

/// Two engines on one pool that holds far less than both want.
#[test]
fn two_engines_on_a_tight_pool_both_finish() {
    let limits = Limits { max_sequences: 16, max_batch_tokens: 64, max_prefill_tokens: 48 };
    let mut pool = Pool::new(100);
    let mut engines = [Engine::default(), Engine::default()];
    for id in 0..40 {
        engines[id as usize % 2].add(id, 30, 200, 0);
    }
    let mut steps = 0;
    while engines.iter().any(|engine| !engine.scheduler.is_idle()) {
        for engine in &mut engines {
            engine.step(&limits, &mut pool);
        }
        steps += 1;
    }
    assert!(engines.iter().all(|engine| engine.done.len() == 20));
    let preemptions: usize = engines.iter().map(|engine| engine.preemptions).sum();
    // One at a time would take 40 × 201; without slack at admission there would be hundreds of preemptions.
    assert!(preemptions > 0 && preemptions < 80 && steps < 8000, "{preemptions} preemptions, {steps} steps");
    assert_eq!(pool.free, 100);
}
