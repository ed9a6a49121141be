//! Idle engines cost nothing. In a process of its own, since it reads the process's CPU time.

mod common;

use cleave::engine::{EngineOptions, Role};
use common::*;
use std::time::Duration;

/// CPU time of this process in nanoseconds, all threads, past ones included.
fn cpu_ns() -> u64 {
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let stat = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
        sum += stat.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    sum
}

#[test]
fn idle_engines_use_no_cpu() {
    let cache = cache_of(60);
    let mut host = Host::new();
    let options = |r| EngineOptions { threads: 2, ..role(r) };
    let engines = [host.engine(&cache, options(Role::Prefill)), host.engine(&cache, options(Role::Mixed))];
    for engine in &engines {
        host.run(engine, request(&prompt(20, 1), 5));
    }
    std::thread::sleep(Duration::from_millis(100));
    let before = cpu_ns();
    std::thread::sleep(Duration::from_secs(1));
    let spent = cpu_ns() - before;
    assert!(spent < 5_000_000, "{spent} ns of CPU in a second of idleness");
}
