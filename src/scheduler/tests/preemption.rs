//! Preemption: which sequence loses its blocks to which.

use super::model::{Engine, Pool};
use crate::scheduler::{Limits, NewSeq, Scheduler};

const LIMITS: Limits = Limits { max_sequences: 8, max_batch_tokens: 256, max_prefill_tokens: 256 };

#[test]
fn the_latest_of_the_lowest_priority_loses_and_comes_back_first() {
    let (mut engine, mut pool) = (Engine::default(), Pool::new(40));
    engine.add(1, 20, 40, 1);
    engine.add(2, 20, 40, 0);
    engine.add(3, 20, 40, 0);
    engine.step(&LIMITS, &mut pool);
    assert_eq!(engine.scheduler.running(), 3);
    engine.add(4, 20, 40, 0);
    let mut lost = Vec::new();
    while !engine.scheduler.is_idle() {
        engine.step(&LIMITS, &mut pool);
        lost.extend_from_slice(&engine.plan.preempted);
    }
    assert_eq!(lost, [3], "each preemption is worth it");
    assert_eq!(engine.done, [1, 2, 3, 4]);
    assert_eq!(pool.free, 40);
}

#[test]
fn a_newcomer_waits_for_its_equals_and_takes_from_lower_priorities() {
    let (mut engine, mut pool) = (Engine::default(), Pool::new(20));
    engine.add(1, 70, 5, 3);
    engine.step(&LIMITS, &mut pool);
    engine.add(2, 40, 5, 3);
    assert_eq!(engine.step(&LIMITS, &mut pool), [(1, 1)]);
    assert!(engine.plan.blocked && engine.plan.preempted.is_empty());
    engine.add(3, 40, 5, 4);
    assert_eq!(engine.step(&LIMITS, &mut pool), [(3, 40)], "the item planned before is taken back");
    assert_eq!(engine.plan.preempted, [1]);
    while !engine.scheduler.is_idle() {
        engine.step(&LIMITS, &mut pool);
    }
    assert_eq!((engine.done, pool.free), (vec![3, 1, 2], 20));
}

#[test]
fn alone_it_gives_up_its_own_blocks() {
    let (mut engine, mut pool) = (Engine::default(), Pool::new(10));
    engine.add(1, 8, 40, 0);
    pool.free = 3;
    for _ in 0..5 {
        engine.step(&LIMITS, &mut pool);
    }
    assert_eq!(engine.jobs[&1].computed, 12);
    assert_eq!(engine.step(&LIMITS, &mut pool), []);
    assert_eq!((engine.plan.preempted.as_slice(), engine.plan.blocked, pool.free), (&[1][..], true, 3));
    assert_eq!((engine.scheduler.running(), engine.scheduler.waiting()), (0, 1));
    pool.free += 9;
    while !engine.scheduler.is_idle() {
        engine.step(&LIMITS, &mut pool);
    }
    assert_eq!((engine.preemptions, pool.free), (1, 12));
}

#[test]
fn a_prompt_behind_a_blocked_one_does_not_overtake_but_an_import_does() {
    let (mut engine, mut pool) = (Engine::default(), Pool::new(30));
    engine.add(1, 40, 9, 0);
    engine.step(&LIMITS, &mut pool);
    engine.add(2, 90, 1, 0);
    engine.add(3, 4, 1, 0);
    assert!(engine.import(&mut pool, 4, 8, 3, 0));
    assert_eq!(engine.step(&LIMITS, &mut pool), [(1, 1), (4, 1)]);
    assert!(engine.plan.blocked);
    while !engine.scheduler.is_idle() {
        engine.step(&LIMITS, &mut pool);
    }
    assert_eq!(engine.done, [4, 1, 2, 3]);
}

#[test]
fn a_paused_sequence_can_be_preempted() {
    let (mut engine, mut pool) = (Engine::default(), Pool::new(12));
    engine.add(1, 8, 36, 0);
    engine.step(&LIMITS, &mut pool);
    assert!(engine.import(&mut pool, 2, 8, 3, 0));
    engine.step(&LIMITS, &mut pool);
    engine.pause(2, true);
    while !engine.done.contains(&1) {
        engine.step(&LIMITS, &mut pool);
    }
    assert_eq!(engine.preemptions, 1);
    assert_eq!(engine.jobs[&2].computed, 0);
}

#[test]
fn nonsense_is_refused() {
    let mut scheduler = Scheduler::new();
    let new = NewSeq { id: 1, tokens: 0, computed: 0, max_tokens: 9, priority: 0, now_ns: 0 };
    assert!(!scheduler.add(new));
    assert!(!scheduler.add(NewSeq { tokens: 2, computed: 3, ..new }));
    assert!(!scheduler.append(1) && !scheduler.pause(1) && !scheduler.resume(1) && !scheduler.remove(1));
    assert!(scheduler.is_idle() && scheduler.progress(1).is_none());
}
