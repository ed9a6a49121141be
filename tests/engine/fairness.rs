//! No request waits for ever: whatever comes later, a request that lost its blocks gets new ones.

use crate::common::*;
use cleave::engine::Role;
use std::collections::HashSet;
use std::time::Duration;

/// A decode engine whose cache is full takes handoffs, which arrive with their blocks, and has a sequence of its own that was
/// preempted and needs more blocks than any of them.
#[test]
fn a_preempted_sequence_comes_back_under_a_stream_of_handoffs() {
    let cache = cache_of(24);
    let mut host = Host::new();
    let prefill = host.engine(&cache, role(Role::Prefill));
    let decode = host.engine(&cache, role(Role::Decode));
    // Together they need 42 blocks.
    let long: Vec<u64> = (1..3).map(|salt| host.submit(&decode, request(&prompt(30, salt), 300))).collect();
    while decode.metrics().preemptions == 0 {
        host.poll(Duration::from_millis(10));
    }
    let (mut ended, mut salt) = (0, 100);
    let (mut prefilling, mut decoding) = (HashSet::new(), HashSet::new());
    while long.iter().any(|id| host.outcomes.get(id).is_none_or(|outcome| outcome.end.is_none())) {
        assert!(ended < 2000, "{ended} later requests ended before the preempted one");
        while prefilling.len() + decoding.len() < 8 {
            salt += 1;
            prefilling.insert(host.submit(&prefill, request(&prompt(30, salt), 17)));
        }
        host.poll(Duration::from_secs(1));
        for (id, end) in host.outcomes.iter().filter_map(|(id, outcome)| Some((*id, outcome.end?))) {
            if prefilling.remove(&id) {
                decoding.insert(host.submit(&decode, continuation(end.kv)));
            }
            ended += u32::from(decoding.remove(&id));
        }
    }
}
