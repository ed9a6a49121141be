//! Recorded steps and role switches. Runs in its own process, because the driver counts for all engines together.

use crate::common::*;
use crate::device::{cache_on, graphs};
use crate::drivers::alone;
use crate::generation::{TEXTS, options, tokens};
use cleave::engine::{CacheOptions, Request, Role};
use cleave::kv::KvId;
use cleave::sequence::FinishReason;

/// A request whose tokens are sampled on the device.
fn plain(prompt: &[u32], n: u32) -> Request {
    let mut request = request(prompt, n);
    request.sampling.logprobs = None;
    request
}

#[test]
fn recorded_steps_outlive_role_switches() {
    alone("roles::are_switched", "");
}

#[test]
#[ignore = "run by recorded_steps_outlive_role_switches"]
fn are_switched() {
    const TOKENS: u32 = 20;
    let cache = cache_on(&tiny(), 0, CacheOptions { no_prefix_cache: true, ..options() });
    let mut host = Host::new();
    let engine = host.engine(&cache, role(Role::Prefill));
    let prefill = |host: &mut Host, text: &str| {
        engine.set_role(Role::Prefill).unwrap();
        let prefilled = host.run(&engine, plain(&tokens(text), 4));
        assert_eq!(prefilled.reason(), FinishReason::Prefilled);
        cache.kv().handles().release(KvId(prefilled.end.unwrap().kv)).unwrap();
        engine.set_role(Role::Decode).unwrap();
    };
    let prompt = tokens(TEXTS[0]);
    // Run a longer prompt beside a sequence first, so that memory grows to the largest size that any later step needs.
    assert!(prompt.len() < tokens(TEXTS[3]).len());
    engine.set_role(Role::Decode).unwrap();
    let id = host.submit(&engine, plain(&prompt, 30));
    host.tokens(id, 2);
    prefill(&mut host, TEXTS[3]);
    host.finish(id);
    let undisturbed = host.run(&engine, plain(&prompt, TOKENS)).tokens;

    let (recorded, replayed) = graphs();
    assert!(recorded > 0 && replayed > 10, "{recorded} recorded, {replayed} repeated");
    let id = host.submit(&engine, plain(&prompt, TOKENS));
    for round in 0..2 {
        host.tokens(id, 3 + round * 6);
        prefill(&mut host, TEXTS[0]);
    }
    assert_eq!(host.finish(id).tokens, undisturbed);
    let before = graphs();
    host.run(&engine, plain(&prompt, 10));
    let after = graphs();
    assert_eq!(after.0, recorded, "recorded anew after a role switch");
    assert!(after.1 >= before.1 + 8 && before.1 > replayed + 4, "{replayed}, {before:?}, {after:?} repeated");
    assert_quiescent(&cache);
}
