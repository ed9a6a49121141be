//! Ends of requests: exactly one FINISHED each, whatever happens to them, and no blocks left in use.

use crate::common::*;
use cleave::engine::{Engine, EngineOptions, EventKind, Request, Role};
use cleave::error::Status;
use cleave::kv::KvId;
use cleave::sequence::FinishReason;
use std::time::Duration;

fn status(outcome: &Outcome) -> Option<Status> {
    outcome.end.unwrap().status
}

#[test]
fn a_deadline_ends_a_request_that_runs_and_one_that_waits() {
    let cache = cache_of(60);
    // With a small queue, no request ends before it is polled, which happens after the deadline.
    let mut host = Host::with_capacity(64);
    let engine = host.engine(&cache, EngineOptions { max_sequences: 1, ..role(Role::Mixed) });
    let slow = |salt| Request { deadline: Some(Duration::from_millis(60)), ..request(&prompt(30, salt), 450) };
    let ids = [host.submit(&engine, slow(1)), host.submit(&engine, slow(2)), host.submit(&engine, slow(3))];
    std::thread::sleep(Duration::from_millis(61));
    for id in ids {
        assert_eq!(status(&host.finish(id)), Some(Status::Timeout));
    }
    drop(engine);
    assert_quiescent(&cache);
}

#[test]
fn a_full_queue_pauses_and_loses_nothing() {
    let cache = cache_of(60);
    let mut host = Host::with_capacity(8);
    let engine = host.engine(&cache, role(Role::Mixed));
    let ids: Vec<_> = (0..3).map(|i| host.squeeze(&engine, request(&prompt(20, i), 40))).collect();
    // There are far more events than queue entries, so the engine eventually fills the queue and pauses.
    let generated = || engine.metrics().generated_tokens;
    let stands = (0..100).any(|_| {
        let before = generated();
        std::thread::sleep(Duration::from_millis(100));
        before > 0 && generated() == before
    });
    assert!(stands && generated() < 3 * 40, "a paused engine does not generate: {}", generated());
    for id in ids {
        let outcome = host.finish(id);
        assert_eq!(outcome.tokens.len(), 40);
        assert_eq!(outcome.indices, (0..40).collect::<Vec<_>>());
    }
    assert_eq!(engine.submit(vec![]).ids.len(), 0);
    drop(engine);
    assert_quiescent(&cache);
}

#[test]
fn roles_switch_under_load_and_keep_their_promises() {
    let cache = cache_of(200);
    let mut host = Host::new();
    let engine = host.engine(&cache, role(Role::Mixed));
    let running = host.submit(&engine, request(&prompt(30, 1), 300));
    host.tokens(running, 2);
    engine.set_role(Role::Prefill).unwrap();
    let prefilled = host.run(&engine, request(&prompt(50, 2), 20));
    assert_eq!(prefilled.reason(), FinishReason::Prefilled);
    engine.set_role(Role::Decode).unwrap();
    let rest = host.run(&engine, continuation(prefilled.end.unwrap().kv));
    assert_eq!(rest.tokens.len(), 19);
    let whole = host.finish(running);
    assert_eq!((whole.tokens.len(), whole.reason()), (300, FinishReason::Length), "accepted as mixed, ends as mixed");
    let metrics = engine.metrics();
    assert_eq!(metrics.role, Role::Decode as u32);
    assert!(metrics.role_switch_ns_last > 0);
}

#[test]
fn impossible_requests_are_refused_by_name() {
    let cache = cache_of(4);
    let host = Host::new();
    let engine = host.engine(&cache, role(Role::Mixed));
    let refuse = |r: Request| engine.submit(vec![r]).refused.expect("refused");
    let error = refuse(request(&prompt(65, 0), 1));
    assert_eq!(error.status, Status::OutOfMemory);
    assert!(error.message.contains("64"), "{error}");
    let vocab = tiny().info().vocab_size;
    let error = refuse(request(&[1, vocab], 1));
    assert!(error.status == Status::InvalidArgument && error.message.contains("index 1"), "{error}");
    let mut hot = request(&[1], 1);
    hot.sampling.temperature = f32::NAN;
    assert_eq!(refuse(hot).status, Status::InvalidArgument);
    assert_eq!(refuse(continuation(99)).status, Status::NotFound);
}

#[test]
fn every_request_ends_once_under_random_interference() {
    let cache = cache_of(40);
    let mut host = Host::with_capacity(64);
    let mut state = 12345u64;
    let mut random = move |n: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % n
    };
    let mut accepted = Vec::new();
    for round in 0..6 {
        // An engine reserves a queue entry when it is created.
        while host.poll(Duration::from_millis(20)) > 0 {}
        let prefill = host.engine(&cache, role(Role::Prefill));
        let decode = host.engine(&cache, EngineOptions { max_sequences: 4, ..role(Role::Mixed) });
        for i in 0..40 {
            let mut job = request(&prompt(1 + random(60) as usize, i), 1 + random(40) as u32);
            job.keep_kv = random(4) == 0;
            if random(5) == 0 {
                job.deadline = Some(Duration::from_micros(random(20_000)));
            }
            let engine = if random(2) == 0 { &prefill } else { &decode };
            accepted.extend(engine.submit(vec![job]).ids);
            if !accepted.is_empty() {
                let id = accepted[random(accepted.len() as u64) as usize];
                match random(4) {
                    0 => drop(prefill.cancel(id).and(decode.cancel(id))),
                    1 => drop(decode.export(id)),
                    _ => {}
                }
            }
            host.poll(Duration::from_millis(random(3)));
        }
        if round % 2 == 0 {
            prefill.drain(Some(Duration::from_millis(1))).ok();
        }
    }
    while host.poll(Duration::from_millis(50)) > 0 {}
    for id in &accepted {
        assert!(host.outcomes.get(id).is_some_and(|o| o.end.is_some()), "request {id:#x} never ended");
    }
    assert!(host.others.iter().all(|e| e.kind != EventKind::EngineFailed));
    for outcome in host.outcomes.values() {
        let kv = outcome.end.unwrap().kv;
        if kv != 0 {
            cache.kv().handles().release(KvId(kv)).unwrap();
        }
    }
    assert_quiescent(&cache);
}

#[test]
fn threads_and_cpus_are_taken_or_refused() {
    let cache = cache_of(60);
    let mut host = Host::new();
    let refuse = |options| Engine::create(&cache, &host.queue, options).err().expect("refused").status;
    assert_eq!(refuse(EngineOptions { threads: 100_000, ..EngineOptions::default() }), Status::InvalidArgument);
    assert_eq!(refuse(EngineOptions { cpus: vec![1000], ..EngineOptions::default() }), Status::InvalidArgument);
    let before = allowed_cpus("self/status");
    // A CPU that this process may use.
    let cpu: usize = before.split(|c: char| !c.is_ascii_digit()).find_map(|number| number.parse().ok()).unwrap();
    let engine = host.engine(&cache, EngineOptions { threads: 2, cpus: vec![cpu], ..role(Role::Mixed) });
    host.run(&engine, request(&prompt(20, 1), 3));
    assert_eq!(allowed_cpus("thread-self/status"), before, "the host's thread stays where it was");
    let list = format!("Cpus_allowed_list:\t{cpu}\n");
    let bound: Vec<String> = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok())
        .filter(|status| status.starts_with("Name:\tcleave-engine") && status.contains(&list))
        .collect();
    assert!(!bound.is_empty(), "the step thread runs on CPU {cpu}");
}

fn allowed_cpus(of: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{of}")).unwrap();
    status.lines().find(|line| line.starts_with("Cpus_allowed_list")).unwrap_or_default().to_string()
}
