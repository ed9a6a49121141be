//! Many handoffs in both directions, over shared memory one way and TCP the other, without any growth in resources.

use super::support::*;

const BATCH: u64 = 20;

/// Number of handoffs per run, multiplied by CLEAVE_TEST_EFFORT.
const HANDOFFS: u64 = 4_000;

/// Idle connections that a worker and its peer keep. Their number depends on how many transfers ever ran at the same
/// time.
const KEPT: u64 = 2 * 16;

struct Size {
    rss: u64,
    threads: u64,
    files: u64,
}

fn size(worker: &mut Worker) -> Size {
    let metrics = worker.ask(json!({"do": "metrics"}));
    let field = |name: &str| metrics[name].as_u64().unwrap();
    Size { rss: field("rss"), threads: field("threads"), files: field("files") }
}

/// Runs a batch in both directions at the same time.
fn exchange(workers: &mut [Worker; 2], salt: &mut u64) {
    let mut requests = [Vec::new(), Vec::new()];
    for _ in 0..BATCH {
        for (worker, requests) in workers.iter_mut().zip(&mut requests) {
            *salt += 1;
            let job = Job::short(*salt);
            requests.push((prefill(worker, &job), job));
        }
    }
    let mut running = Vec::new();
    for (from, requests) in requests.into_iter().enumerate() {
        for (request, job) in requests {
            let kv = workers[from].ask(json!({"do": "wait", "request": request}))["kv"].clone();
            let ticket = workers[from].ask(json!({"do": "ticket", "kv": kv}))["ticket"].clone();
            let to = &mut workers[1 - from];
            let kv = to.ask(import(&ticket))["kv"].clone();
            running.push((1 - from, to.try_ask(decode(&kv, false)), job));
        }
    }
    for (to, submitted, job) in running {
        assert_eq!(end(&mut workers[to], submitted), End::Tokens(job.want()));
    }
    workers.iter_mut().for_each(|worker| _ = worker.ask(json!({"do": "forget"})));
}

#[test]
fn thousands_of_handoffs_leave_nothing_behind() {
    let effort = std::env::var("CLEAVE_TEST_EFFORT").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let wanted = HANDOFFS * effort;
    let config = json!({"listen": "127.0.0.1:0", "blocks": 160});
    let mut workers = [Worker::start(config.clone()), Worker::start(config)];
    let [a, b] = &mut workers;
    pair(a, b, Way::Shared);
    pair(b, a, Way::Tcp);
    let mut salt = 0;
    let warm = (wanted / 4).max(200);
    while salt < warm {
        exchange(&mut workers, &mut salt);
    }
    let before = workers.each_mut().map(size);
    while salt < wanted {
        exchange(&mut workers, &mut salt);
    }
    for (worker, before) in workers.iter_mut().zip(&before) {
        settled(worker, "after the load");
        let after = size(worker);
        assert!(after.rss < before.rss + before.rss / 20, "{} KiB, then {}", before.rss, after.rss);
        assert!(after.files <= before.files + KEPT, "{} descriptors, then {}", before.files, after.files);
        assert!(after.threads <= before.threads + KEPT, "{} threads, then {}", before.threads, after.threads);
        let metrics = worker.ask(json!({"do": "metrics"}));
        assert_eq!((&metrics["imports"], &metrics["failed"]), (&json!(salt / 2), &json!(0)), "{metrics}");
    }
}
