//! A fault in one engine ends that engine's requests, says so, and leaves the others alone.
#![cfg(feature = "failpoints")]

mod common;

use cleave::engine::{EventKind, Role};
use cleave::error::Status;
use cleave::failpoint::{Action, arm};
use cleave::sequence::FinishReason;
use common::*;
use std::time::Duration;

#[test]
fn a_panic_or_error_in_a_step_is_reported_and_contained() {
    for (action, status) in [(Action::Panic, Status::Internal), (Action::Fail(Status::Device), Status::Device)] {
        let cache = cache_of(60);
        let mut host = Host::new();
        let bad = host.engine(&cache, role(Role::Mixed));
        let ids: Vec<_> = (0..3).map(|i| host.submit(&bad, request(&prompt(20, i), 300))).collect();
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
