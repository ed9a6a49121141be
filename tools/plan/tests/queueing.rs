//! Results of queueing theory, and times that can be computed by hand.

mod common;

use cleave_plan::cost::StepCost;
use cleave_plan::sim::{Failure, Pool, Role, Routing, simulate};
use cleave_plan::workload::{Arrival, Lengths, Workload, poisson};
use common::{bare, constant};
use std::sync::Arc;

const ONE_TOKEN: Lengths = Lengths { prompt: 1, output: 1, spread: 0.0 };

/// One server with a constant service time: the mean wait is ρ · s / (2 · (1 − ρ)) (Pollaczek and Khinchine).
#[test]
fn the_mean_wait_of_m_d_1() {
    let service = 0.010;
    for load in [0.3, 0.6, 0.8] {
        let deployment = bare(vec![constant(Role::Mixed, service, 1)]);
        let arrivals = poisson(load / service, 200_000, ONE_TOKEN, None, 11);
        let outcome = simulate(&deployment, &Workload::Open(arrivals));
        let n = outcome.requests.len() as f64;
        let wait = outcome.requests.iter().map(|request| request.ttft() - service).sum::<f64>() / n;
        let expected = load * service / (2.0 * (1.0 - load));
        assert!((wait / expected - 1.0).abs() < 0.05, "load {load}: waits {wait}, expected {expected}");
    }
}

/// The number of requests in the system is the rate of arrival times the time that each stays (Little).
#[test]
fn littles_law() {
    let deployment = bare(vec![constant(Role::Mixed, 0.005, 8)]);
    let lengths = Lengths { prompt: 4, output: 20, spread: 0.5 };
    let outcome = simulate(&deployment, &Workload::Open(poisson(60.0, 20_000, lengths, None, 2)));
    let stay: f64 = outcome.requests.iter().map(|request| request.e2e()).sum();
    // The integral of the number in the system, from the changes in the order of time.
    let arrivals = outcome.requests.iter().map(|request| (request.arrived_ns, 1i64));
    let mut changes: Vec<(u64, i64)> = arrivals.chain(outcome.requests.iter().map(|r| (r.last_ns, -1))).collect();
    changes.sort();
    let (mut inside, mut at, mut area) = (0, 0, 0.0);
    for (time, change) in changes {
        area += inside as f64 * (time - at) as f64 / 1e9;
        (inside, at) = (inside + change, time);
    }
    assert!((area / stay - 1.0).abs() < 1e-6, "{area} {stay}");
}

/// With as many streams as places nobody waits for a place. When a request ends, the next step begins at once for the other
/// streams, so the stream's next request misses it: 11 steps for 10 tokens.
#[test]
fn closed_streams_miss_one_step_for_each_request() {
    let deployment = bare(vec![constant(Role::Mixed, 0.01, 4)]);
    let lengths = Lengths { prompt: 1, output: 10, spread: 0.0 };
    let workload = Workload::Closed { streams: 4, lengths, until_ns: 10_000_000_000, seed: 0 };
    let outcome = simulate(&deployment, &workload);
    let tokens: usize = outcome.requests.iter().map(|request| request.generated).sum();
    let rate = tokens as f64 / (outcome.end_ns as f64 / 1e9);
    let expected = 400.0 * 10.0 / 11.0;
    assert!((rate / expected - 1.0).abs() < 0.01, "{rate}");
}

fn alone(prompt: usize, output: usize) -> Workload {
    Workload::Open(vec![Arrival { at_ns: 0, prompt, output, blocks: Arc::new([]) }])
}

/// A lone request: steps of its prompt, the transfer of its KV, then one step for each further token.
#[test]
fn a_lone_handoff_takes_the_sum_of_its_parts() {
    let mut deployment = bare(vec![constant(Role::Prefill, 0.100, 8), constant(Role::Decode, 0.020, 8)]);
    deployment.links.latency = 0.003;
    deployment.request_overhead = 0.007;
    deployment.links.streaming = false;
    // 20,000 tokens are three steps of 8192 at most; their KV is 2 GB.
    let request = &simulate(&deployment, &alone(20_000, 11)).requests[0];
    assert!((request.ttft() - (0.007 + 0.3 + 2.0 + 0.003)).abs() < 1e-6, "{}", request.ttft());
    assert!((request.itl() - 0.020).abs() < 1e-6, "{}", request.itl());
    // A streamed transfer begins after the first step. It takes longer than the steps, so it sets the time.
    deployment.links.streaming = true;
    let request = &simulate(&deployment, &alone(20_000, 11)).requests[0];
    assert!((request.ttft() - (0.007 + 0.1 + 2.0 + 0.003)).abs() < 1e-6, "{}", request.ttft());
}

/// A decode engine without prefill engines computes prompts itself, 64 tokens in a step.
#[test]
fn a_decode_engine_takes_small_prompt_chunks() {
    let deployment = bare(vec![constant(Role::Decode, 0.010, 8)]);
    let request = &simulate(&deployment, &alone(640, 2)).requests[0];
    assert!((request.ttft() - 0.1).abs() < 1e-6, "{}", request.ttft());
}

/// A failed engine's request computes its prompt and its tokens anew elsewhere, and the client gets no token twice.
#[test]
fn a_migrated_request_goes_on_where_it_was() {
    let mut deployment = bare(vec![constant(Role::Mixed, 0.010, 8), constant(Role::Mixed, 0.010, 8)]);
    deployment.failures = vec![cleave_plan::sim::Failure { engine: 0, at_ns: 105_000_000, back_after_ns: None }];
    let outcome = simulate(&deployment, &alone(100, 20));
    let request = &outcome.requests[0];
    // Ten tokens in 100 ms, the failure at 105 ms, 50 ms until it is noticed, and ten more tokens.
    assert_eq!((request.first_ns, request.last_ns), (10_000_000, 255_000_000));
    assert_eq!(outcome.migrations, 1);
}

/// A run of a few times as long as a request stays: rates are those while requests arrive into a filled deployment, not of the
/// time in which it fills or empties. With unlimited places a request stays for its 100 steps.
#[test]
fn rates_leave_out_filling_and_emptying() {
    let deployment = bare(vec![constant(Role::Mixed, 0.1, 1000)]);
    let lengths = Lengths { prompt: 1, output: 100, spread: 0.0 };
    let report = common::report(&deployment, &Workload::Open(poisson(20.0, 1200, lengths, None, 3)));
    assert!((report.tokens_per_device / 2000.0 - 1.0).abs() < 0.06, "{}", report.tokens_per_device);
    assert!((report.keeping_up - 1.0).abs() < 0.03, "{}", report.keeping_up);
    assert!(report.pools[0].utilisation > 0.99, "{}", report.pools[0].utilisation);
}

/// An engine that is offered more than it carries generates what it carries, and the rest is seen to queue.
#[test]
fn overload_is_seen_however_short_the_queue_is() {
    // One place, ten steps of 0.01 s for a request and one that its successor misses: no more than 10 requests/s.
    let deployment = bare(vec![constant(Role::Mixed, 0.01, 1)]);
    let lengths = Lengths { prompt: 1, output: 10, spread: 0.0 };
    for (rate, kept) in [(8.0, 1.0), (12.5, 0.8)] {
        let report = common::report(&deployment, &Workload::Open(poisson(rate, 2000, lengths, None, 5)));
        assert!((report.keeping_up - kept).abs() < 0.04, "{rate}: {}", report.keeping_up);
    }
}

/// A transfer that waits for a busy receiver leaves its sender's link to others.
#[test]
fn a_busy_receiver_does_not_hold_up_its_sender() {
    let pools = [constant(Role::Prefill, 0.1, 8), constant(Role::Decode, 0.02, 8)];
    let [mut prefill, mut decode] = pools;
    (prefill.engines, decode.engines, prefill.max_batch_tokens) = (2, 3, 200_000);
    let mut deployment = bare(vec![prefill, decode]);
    deployment.routing = Routing::RoundRobin;
    deployment.links.streaming = false;
    // Prefill engines 0 and 1 take turns, and so do the three receivers. 10,000 tokens take a second.
    let sizes = [(0, 100_000), (0, 10), (200, 10), (400, 10_000), (600, 10), (800, 10_000)];
    let arrival =
        |(ms, prompt): (u64, usize)| Arrival { at_ns: ms * 1_000_000, prompt, output: 2, blocks: Arc::new([]) };
    let outcome = simulate(&deployment, &Workload::Open(sizes.map(arrival).into()));
    let ttft = |index: usize| outcome.requests[index].ttft();
    // The receiver is busy until 10.1 s with the first request's KV.
    assert!((ttft(3) - (11.1 - 0.4)).abs() < 0.03, "{}", ttft(3));
    // Goes to another receiver: the sender is free again at 1.5 s.
    assert!((ttft(5) - (2.5 - 0.8)).abs() < 0.03, "{}", ttft(5));
}

/// Load generators count the requests that end during a run (here of 2.5 s), without a warm-up.
#[test]
fn a_run_of_streams_counts_what_ends_in_it() {
    let mut deployment = bare(vec![constant(Role::Mixed, 0.01, 1)]);
    // The third request waits for the engine's return.
    deployment.failures = vec![Failure { engine: 0, at_ns: 2_200_000_000, back_after_ns: Some(10_000_000_000) }];
    let lengths = Lengths { prompt: 1, output: 100, spread: 0.0 };
    let workload = Workload::Closed { streams: 1, lengths, until_ns: 2_500_000_000, seed: 1 };
    let report = common::report(&deployment, &workload);
    assert_eq!(report.finished, 3);
    assert!((report.e2e.p99 - 1.0).abs() < 1e-6, "{}", report.e2e.p99);
    assert!((report.ttft.p50 - 0.01).abs() < 1e-6, "{}", report.ttft.p50);
}

/// Engines that share a machine are slower exactly while the other one computes.
#[test]
fn steps_beside_another_engine_take_their_own_time() {
    let pools = |disturbed: f64| {
        [Role::Prefill, Role::Decode]
            .map(|role| Pool { disturbed: Some(StepCost::Constant(disturbed)), ..constant(role, 0.010, 8) })
            .to_vec()
    };
    let times = |disturbed: f64, streams| {
        let lengths = Lengths { prompt: 100, output: 11, spread: 0.0 };
        let workload = Workload::Closed { streams, lengths, until_ns: 60_000_000_000, seed: 1 };
        let outcome = simulate(&bare(pools(disturbed)), &workload);
        outcome.requests.iter().map(|request| request.last_ns - request.arrived_ns).collect::<Vec<_>>()
    };
    assert_eq!(times(0.010, 1), times(0.030, 1), "one stream is never in both engines");
    let (quiet, disturbed) = (times(0.010, 2), times(0.030, 2));
    assert!(disturbed.iter().sum::<u64>() / disturbed.len() as u64 > quiet.iter().sum::<u64>() / quiet.len() as u64);
    assert!(disturbed.len() < quiet.len());
}
