//! A fault in one engine ends and reports that engine's requests, and leaves other engines alone.
#![cfg(feature = "failpoints")]

mod common;

use cleave::engine::{EngineOptions, EventKind, Request, Role};
use cleave::error::Status;
use cleave::failpoint::{Action, arm};
use cleave::sequence::FinishReason;
use common::*;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Failpoints apply to the whole process, so tests run one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wherever the step thread panics, every accepted request ends exactly once and no blocks remain in use.
#[test]
fn a_panic_anywhere_loses_no_request() {
    let _alone = alone();
    for (point, nth) in [("engine.arrive", 1), ("engine.arrive", 3), ("engine.finish", 1), ("engine.finish", 2)] {
        let cache = cache_of(60);
        let mut host = Host::new();
        let bad = host.engine(&cache, EngineOptions { max_sequences: 2, ..role(Role::Mixed) });
        let good = host.engine(&cache, role(Role::Mixed));
        arm(point, nth, Action::Panic);
        let jobs = (0..5).map(|i| Request { keep_kv: true, ..request(&prompt(20, i), 4) }).collect();
        let ids = bad.submit(jobs).ids;
        for id in ids {
            let outcome = host.finish(id);
            let end = outcome.end.unwrap();
            if outcome.reason() == FinishReason::Error {
                assert_eq!(end.status, Some(Status::Internal), "{point} {nth}");
            } else {
                cache.kv().handles().release(cleave::kv::KvId(end.kv)).unwrap();
            }
        }
        bad.drain(Some(Duration::from_secs(10))).expect("nothing is open any more");
        while host.others.is_empty() {
            assert!(host.poll(Duration::from_secs(10)) > 0, "{point} {nth}: no ENGINE_FAILED");
        }
        assert_eq!(bad.submit(vec![request(&prompt(3, 1), 1)]).refused.unwrap().status, Status::Internal);
        assert_eq!(host.run(&good, request(&prompt(20, 1), 10)).tokens.len(), 10);
        drop((bad, good));
        assert_eq!(host.others.iter().filter(|e| e.kind == EventKind::EngineFailed).count(), 1);
        assert_quiescent(&cache);
        cleave::failpoint::disarm_all();
    }
}

/// A second fault occurs while the first is being handled.
#[test]
fn a_panic_while_a_fault_is_handled_loses_no_request() {
    let _alone = alone();
    let cache = cache_of(60);
    // With a small queue, no request ends before it is polled.
    let mut host = Host::with_capacity(64);
    let bad = host.engine(&cache, role(Role::Mixed));
    let ids: Vec<_> = (0..4).map(|i| host.squeeze(&bad, request(&prompt(20, i), 300))).collect();
    host.tokens(ids[0], 2);
    arm("engine.finish", 2, Action::Panic);
    arm("engine.step", 1, Action::Fail(Status::Device));
    for id in ids {
        assert_eq!(host.finish(id).reason(), FinishReason::Error);
    }
    bad.drain(Some(Duration::from_secs(10))).ok();
    let refused = bad.submit(vec![request(&prompt(3, 1), 1)]).refused.unwrap();
    assert_eq!(refused.status, Status::Device, "{refused}");
    drop(bad);
    while host.poll(Duration::from_millis(50)) > 0 {}
    assert_eq!(host.others.len(), 1, "{:?}", host.others);
    assert_quiescent(&cache);
}

#[test]
fn a_panic_or_error_in_a_step_is_reported_and_contained() {
    let _alone = alone();
    for (action, status) in [(Action::Panic, Status::Internal), (Action::Fail(Status::Device), Status::Device)] {
        let cache = cache_of(60);
        let mut host = Host::with_capacity(64);
        let bad = host.engine(&cache, role(Role::Mixed));
        let ids: Vec<_> = (0..3).map(|i| host.squeeze(&bad, request(&prompt(20, i), 300))).collect();
        host.tokens(ids[0], 2);
        arm("engine.step", 1, action);
        for id in ids {
            let outcome = host.finish(id);
            assert_eq!(outcome.reason(), FinishReason::Error);
            assert_eq!(outcome.end.unwrap().status, Some(status));
        }
        while host.others.is_empty() {
            host.poll(Duration::from_secs(1));
        }
        let failed = host.others.pop().unwrap();
        assert_eq!((failed.kind, failed.status), (EventKind::EngineFailed, Some(status)));
        let refused = bad.submit(vec![request(&prompt(3, 1), 1)]).refused.unwrap();
        assert_eq!(refused.status, status);
        assert!(refused.message.contains("failpoint engine.step"), "{refused}");

        let good = host.engine(&cache, role(Role::Mixed));
        assert_eq!(host.run(&good, request(&prompt(20, 1), 10)).tokens.len(), 10);
        drop((bad, good));
        assert_quiescent(&cache);
    }
}
