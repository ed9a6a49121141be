//! Budget, sharing, priorities, ageing, admission.

use super::model::{Engine, Pool};
use crate::scheduler::{CHUNK, Limits};

const SECOND: u64 = 1_000_000_000;

fn limits(max_sequences: usize, max_batch_tokens: usize, max_prefill_tokens: usize) -> Limits {
    Limits { max_sequences, max_batch_tokens, max_prefill_tokens }
}

#[test]
fn a_prompt_is_cut_into_chunks_of_the_budget() {
    let (mut engine, mut pool) = (Engine::default(), Pool::new(1000));
    engine.add(1, 150, 3, 0);
    let limits = limits(4, 64, 64);
    let mut lens = Vec::new();
    while !engine.scheduler.is_idle() {
        lens.extend(engine.step(&limits, &mut pool));
    }
    assert_eq!(lens, [(1, 64), (1, 64), (1, 22), (1, 1), (1, 1)]);
    assert_eq!(pool.free, 1000);
}

#[test]
fn decodes_come_before_prompts() {
    let (mut engine, mut pool) = (Engine::default(), Pool::new(1000));
    let limits = limits(4, 32, 16);
    engine.add(1, 8, 100, 0);
    engine.step(&limits, &mut pool);
    engine.add(2, 500, 1, 7);
    for _ in 0..10 {
        assert_eq!(engine.step(&limits, &mut pool), [(1, 1), (2, 16)]);
    }
}

#[test]
fn a_long_prompt_does_not_hold_up_short_ones() {
    let (mut engine, mut pool) = (Engine::default(), Pool::new(100_000));
    let limits = limits(8, 512, 512);
    engine.add(1, 100_000, 1, 0);
    engine.step(&limits, &mut pool);
    engine.add(2, 300, 1, 0);
    engine.add(3, 40, 1, 0);
    // 512 / 3, rounded up to whole chunks; what 3 does not need goes to the others.
    let mut lens = engine.step(&limits, &mut pool);
    lens.sort();
    assert_eq!(lens, [(1, 232), (2, 240), (3, 40)]);
    engine.step(&limits, &mut pool);
    assert_eq!(engine.done, [3, 2]);
}

#[test]
fn when_shares_are_too_small_sequences_take_turns() {
    let (mut engine, mut pool) = (Engine::default(), Pool::new(10_000));
    let limits = limits(8, 2 * CHUNK, 2 * CHUNK);
    for id in 1..=3 {
        engine.add(id, 1000, 1, 0);
    }
    let first = engine.step(&limits, &mut pool);
    assert_eq!(first, [(1, 16), (2, 16)], "no more are admitted than get a chunk");
    // A higher priority is admitted nevertheless, and first.
    engine.add(4, 1000, 1, 1);
    assert_eq!(engine.step(&limits, &mut pool), [(4, 32)]);
}

#[test]
fn too_many_decodes_take_turns() {
    let (mut engine, mut pool) = (Engine::default(), Pool::new(1000));
    for id in 1..=5 {
        engine.add(id, 2, 100, 0);
    }
    engine.step(&limits(8, 100, 100), &mut pool);
    let small = limits(8, 3, 3);
    let mut count = [0; 6];
    for _ in 0..10 {
        for (id, len) in engine.step(&small, &mut pool) {
            count[id as usize] += len;
        }
    }
    assert_eq!(count, [0, 6, 6, 6, 6, 6]);
}

#[test]
fn higher_priorities_first_and_fifo_within_one() {
    let (mut engine, mut pool) = (Engine::default(), Pool::new(1000));
    for (id, priority) in [(1, 0), (2, 1), (3, 1), (4, 5), (5, 0)] {
        engine.add(id, 16, 1, priority);
        engine.now_ns += 1000;
    }
    while !engine.scheduler.is_idle() {
        engine.step(&limits(1, 16, 16), &mut pool);
    }
    assert_eq!(engine.done, [4, 2, 3, 1, 5]);
}

#[test]
fn waiting_raises_a_sequence_by_one_level_a_second() {
    let run = |wait_ns: u64| {
        let (mut engine, mut pool) = (Engine::default(), Pool::new(1000));
        engine.add(1, 16, 1, 0);
        engine.now_ns += wait_ns;
        engine.add(2, 16, 1, 3);
        while !engine.scheduler.is_idle() {
            engine.step(&limits(1, 16, 16), &mut pool);
        }
        engine.done
    };
    assert_eq!(run(2 * SECOND), [2, 1]);
    assert_eq!(run(3 * SECOND), [1, 2]);
}

#[test]
fn a_low_priority_prompt_gets_a_share_now_and_then() {
    let (mut engine, mut pool) = (Engine::default(), Pool::new(100_000));
    let limits = limits(8, 32, 32);
    engine.add(1, 320, 1, 0);
    engine.step(&limits, &mut pool);
    let mut steps = 0;
    for id in 2.. {
        engine.add(id, 32, 1, 1);
        engine.now_ns += SECOND / 10;
        engine.step(&limits, &mut pool);
        steps += 1;
        if engine.done.contains(&1) {
            break;
        }
    }
    assert!((90..220).contains(&steps), "{steps} steps of 0.1 s for 9 chunks, a level apart");
}

#[test]
fn paused_sequences_are_left_out() {
    let (mut engine, mut pool) = (Engine::default(), Pool::new(1000));
    let limits = limits(2, 64, 64);
    engine.add(1, 8, 100, 0);
    engine.add(2, 8, 100, 0);
    engine.add(3, 8, 100, 0);
    engine.pause(2, true);
    assert_eq!(engine.step(&limits, &mut pool), [(1, 8), (3, 8)], "a waiting one is passed over");
    engine.pause(1, true);
    assert_eq!(engine.step(&limits, &mut pool), [(3, 1)], "a running one keeps its place");
    engine.pause(1, false);
    assert_eq!(engine.step(&limits, &mut pool), [(1, 1), (3, 1)]);
    assert_eq!((engine.scheduler.running(), engine.scheduler.waiting()), (2, 1));
}

#[test]
fn a_prefix_hit_is_not_computed_again() {
    let (mut engine, mut pool) = (Engine::default(), Pool::new(1000));
    pool.hit = 40;
    engine.add(1, 50, 2, 0);
    engine.add(2, 40, 2, 0);
    // The last token is always computed: its logits are wanted.
    assert_eq!(engine.step(&limits(4, 64, 64), &mut pool), [(2, 1), (1, 10)]);
}

#[test]
fn an_imported_sequence_decodes_at_once() {
    let (mut engine, mut pool) = (Engine::default(), Pool::new(1000));
    engine.add(1, 500, 2, 0);
    assert!(engine.import(&mut pool, 2, 33, 5, 0));
    assert_eq!(engine.step(&limits(4, 64, 16), &mut pool), [(2, 1), (1, 16)]);
}
