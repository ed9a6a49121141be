//! Prefill and decode on one device at once: priorities by role, and partitions of the multiprocessors.

use crate::common::*;
use crate::device::{self, cache_on, last_kernel, simulated};
use crate::drivers::alone;
use crate::generation::{TEXTS, options, tokens};
use cleave::engine::{Engine, EngineOptions, Request, Role};
use cleave::error::Status;
use std::time::{Duration, Instant};

/// Engine options with a fixed step length, so that no measurement runs and the last kernel is a request's.
fn with(role: Role, sm_percent: u32) -> EngineOptions {
    EngineOptions { role: Some(role), max_batch_tokens: 512, threads: 1, sm_percent, ..EngineOptions::default() }
}

fn job(text: usize, n: u32) -> Request {
    let mut job = request(&tokens(TEXTS[text]), n);
    job.sampling.logprobs = None;
    job
}

fn until(what: &str, reached: impl Fn() -> bool) {
    let begun = Instant::now();
    while !reached() {
        assert!(begun.elapsed() < Duration::from_secs(300), "{what} did not come about");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn multiprocessors(engine: &Engine, expected: u32) {
    until(&format!("{expected} multiprocessors"), || engine.metrics().multiprocessors == expected);
}

/// Runs in its own process, so that no other test's kernel is the last.
#[test]
fn priority_follows_the_role() {
    if simulated() {
        alone("partition::has_priority_by_role", "");
    }
}

#[test]
#[ignore = "run by priority_follows_the_role"]
fn has_priority_by_role() {
    device::simulate();
    let cache = cache_on(&tiny(), 0, options());
    let mut host = Host::new();
    let engine = host.engine(&cache, with(Role::Prefill, 0));
    // The runs are long enough for recorded steps, whose graphs belong to a stream of one priority.
    let mut expected = Vec::new();
    let mut switches = Vec::new();
    for (role, priority) in [(Role::Mixed, 0), (Role::Decode, -5), (Role::Mixed, 0), (Role::Decode, -5)] {
        engine.set_role(role).unwrap();
        until("the role", || engine.metrics().role == role as u32);
        switches.push(engine.metrics().role_switch_ns_last);
        let found = host.run(&engine, job(1, 12)).tokens;
        assert_eq!(last_kernel(), (priority, 132), "{role:?}");
        expected.push(found);
    }
    assert!(expected.iter().all(|tokens| *tokens == expected[0]));
    assert!(switches.iter().any(|&ns| ns < 50_000_000), "the best of {switches:?} ns");
    drop((engine, cache, host));
    assert_eq!(device::leaks(), "");
}

#[test]
fn engines_have_parts_of_the_multiprocessors() {
    if simulated() {
        alone("partition::has_parts", "");
    }
}

#[test]
#[ignore = "run by engines_have_parts_of_the_multiprocessors"]
fn has_parts() {
    device::simulate();
    let cache = cache_on(&tiny(), 0, options());
    let mut host = Host::new();
    let whole = host.engine(&cache, with(Role::Mixed, 100));
    assert_eq!(whole.metrics().multiprocessors, 132);
    let expected = host.run(&whole, job(0, 8)).tokens;

    let (prefill, decode) = (host.engine(&cache, with(Role::Prefill, 70)), host.engine(&cache, with(Role::Decode, 30)));
    // 132 multiprocessors are 16 groups of 8 and a remainder of 4. Prefill gets 12 groups, decode 4 and the remainder.
    assert_eq!((prefill.metrics().multiprocessors, decode.metrics().multiprocessors), (96, 36));
    let kv = host.run(&prefill, job(0, 8)).end.unwrap().kv;
    assert_eq!(last_kernel(), (0, 96));
    let first = host.outcomes.values().find(|o| o.end.is_some_and(|end| end.kv == kv)).unwrap().tokens.clone();
    let rest = host.run(&decode, continuation(kv)).tokens;
    assert_eq!(last_kernel(), (-5, 36));
    assert_eq!([first, rest].concat(), expected);

    // Engines with the same share use the same partition.
    let another = host.engine(&cache, with(Role::Decode, 30));
    assert_eq!(another.metrics().multiprocessors, 36);
    assert_eq!(device::leaks().matches("green context").count(), 2, "{}", device::leaks());
    drop(another);

    // Shares change while engines run: one shrinks to make room, then the other grows. Recorded steps follow.
    prefill.set_sm_percent(40).unwrap();
    multiprocessors(&prefill, 56);
    decode.set_sm_percent(60).unwrap();
    multiprocessors(&decode, 76);
    assert_eq!(device::leaks().matches("green context").count(), 2, "{}", device::leaks());
    assert_eq!(host.run(&decode, job(0, 8)).tokens, expected);
    assert_eq!(last_kernel(), (-5, 76));
    let id = host.submit(&decode, job(0, 40));
    host.tokens(id, 8);
    decode.set_sm_percent(0).unwrap();
    multiprocessors(&decode, 132);
    assert_eq!(host.finish(id).tokens[..8], expected[..]);
    assert_eq!(last_kernel(), (-5, 132));
    assert_eq!(device::leaks().matches("green context").count(), 1, "{}", device::leaks());

    let error = decode.set_sm_percent(101).unwrap_err();
    assert_eq!(error.status, Status::InvalidArgument, "{error}");
    drop((whole, prefill, decode, cache, host));
    assert_eq!(device::leaks(), "");
}

#[test]
fn roles_on_one_device_share_it_by_default() {
    if simulated() {
        alone("partition::shares_by_default", "");
        alone("partition::cannot_share_by_default", "green=0");
    }
}

#[test]
#[ignore = "run by roles_on_one_device_share_it_by_default"]
fn shares_by_default() {
    device::simulate();
    let cache = cache_on(&tiny(), 0, options());
    let mut host = Host::new();
    let prefill = host.engine(&cache, with(Role::Prefill, 0));
    let expected = host.run(&prefill, job(0, 8)).tokens;
    assert_eq!(last_kernel(), (0, 132), "alone it has all");
    let decode = host.engine(&cache, with(Role::Decode, 0));
    multiprocessors(&prefill, 96);
    multiprocessors(&decode, 36);
    let kv = host.run(&prefill, job(0, 8)).end.unwrap().kv;
    assert_eq!(last_kernel(), (0, 96));
    host.run(&decode, continuation(kv));
    assert_eq!(last_kernel(), (-5, 36));
    // Another engine of either role joins that role's partition. A mixed engine uses the whole device. An engine that
    // changes its role keeps its share.
    let another = host.engine(&cache, with(Role::Decode, 0));
    multiprocessors(&another, 36);
    let mixed = host.engine(&cache, with(Role::Mixed, 0));
    assert_eq!(mixed.metrics().multiprocessors, 132);
    decode.set_role(Role::Mixed).unwrap();
    host.run(&decode, job(1, 3));
    assert_eq!(last_kernel(), (0, 36));
    decode.set_role(Role::Decode).unwrap();
    // If the host sets the share of any engine, the default split ends until the host resets that share to 0.
    mixed.set_sm_percent(100).unwrap();
    [&prefill, &decode, &another].into_iter().for_each(|engine| multiprocessors(engine, 132));
    assert_eq!(host.run(&prefill, job(0, 8)).tokens, expected);
    mixed.set_sm_percent(0).unwrap();
    multiprocessors(&prefill, 96);
    drop((decode, another));
    multiprocessors(&prefill, 132);
    drop((prefill, mixed, cache, host));
    assert_eq!(device::leaks(), "");
}

#[test]
#[ignore = "run by roles_on_one_device_share_it_by_default"]
fn cannot_share_by_default() {
    device::load(&crate::drivers::settings());
    let cache = cache_on(&tiny(), 0, options());
    let mut host = Host::new();
    let (prefill, decode) = (host.engine(&cache, with(Role::Prefill, 0)), host.engine(&cache, with(Role::Decode, 0)));
    let kv = host.run(&prefill, job(0, 8)).end.unwrap().kv;
    assert_eq!(host.run(&decode, continuation(kv)).tokens.len(), 7);
    assert_eq!((prefill.metrics().multiprocessors, decode.metrics().multiprocessors), (132, 132));
}

#[test]
fn a_driver_or_device_without_parts() {
    if simulated() {
        alone("partition::has_no_parts", "driver=12040");
        alone("partition::has_no_parts", "green=0");
        alone("partition::has_no_parts", "sms=8");
    }
}

#[test]
#[ignore = "run by a_driver_or_device_without_parts"]
fn has_no_parts() {
    device::load(&crate::drivers::settings());
    let cache = cache_on(&tiny(), 0, options());
    let mut host = Host::new();
    let refused = Engine::create(&cache, &host.queue, with(Role::Mixed, 50)).err().expect("there are no parts");
    assert_eq!(refused.status, Status::Unsupported, "{refused}");
    assert!(refused.message.contains("multiprocessors"), "{refused}");
    // A refused change leaves the engine as it was.
    let engine = host.engine(&cache, with(Role::Mixed, 0));
    assert_eq!(engine.set_sm_percent(50).unwrap_err().status, Status::Unsupported);
    engine.set_sm_percent(100).unwrap();
    assert_eq!(host.run(&engine, job(1, 3)).tokens.len(), 3);
    drop((engine, cache, host));
    assert_eq!(device::leaks(), "");
}

#[test]
fn the_cpu_has_none() {
    let cache = cache(options());
    let host = Host::new();
    let refused = Engine::create(&cache, &host.queue, with(Role::Mixed, 50)).err().expect("no parts of a CPU");
    assert_eq!(refused.status, Status::Unsupported, "{refused}");
    let engine = host.engine(&cache, with(Role::Mixed, 0));
    assert_eq!(engine.set_sm_percent(50).unwrap_err().status, Status::Unsupported);
    engine.set_sm_percent(0).unwrap();
}

/// Makes each driver call of a partition's creation fail in turn. The result is an error, and nothing is leaked.
#[test]
fn calls_that_fail() {
    if simulated() {
        alone("partition::fails_in_turn", "");
    }
}

#[test]
#[ignore = "run by calls_that_fail"]
fn fails_in_turn() {
    device::simulate();
    assert_eq!(cleave::backend::devices::count(), 1);
    let life = || {
        let cache = cleave::engine::ModelCache::create(&tiny(), &[0], options())?;
        let host = Host::new();
        device::load(""); // counts from here
        let engine = Engine::create(&cache, &host.queue, with(Role::Mixed, 50));
        let calls = device::calls();
        engine.map(|_| calls)
    };
    let calls = life().unwrap();
    assert!(calls > 20, "{calls}");
    for k in 1..=calls {
        let cache = cleave::engine::ModelCache::create(&tiny(), &[0], options()).unwrap();
        let host = Host::new();
        device::load(&format!("fail={k}"));
        let outcome = Engine::create(&cache, &host.queue, with(Role::Mixed, 50));
        device::load("fail=0");
        match outcome {
            // The last calls free the streams of the whole device. If these fail, no error is reported.
            Ok(engine) => {
                drop(engine);
                assert!(k + 2 > calls, "nobody noticed that call {k} of {calls} failed");
            }
            Err(error) => assert!(matches!(error.status, Status::Device | Status::OutOfMemory), "{error}"),
        }
        drop((cache, host));
        assert_eq!(device::leaks(), "", "after call {k} of {calls} failed");
    }
}
