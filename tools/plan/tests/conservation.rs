//! Each request ends once with all its tokens, whatever happens to the engines, and the same input gives the same result.

mod common;

use cleave_plan::sim::{Deployment, End, Failure, Role, Routing, Switching, simulate};
use cleave_plan::workload::{Lengths, SharedPrefix, Workload, poisson};
use common::{SLO, apart, check_complete, deployment, pool, report, requests};

const SECOND: u64 = 1_000_000_000;

/// Deployments of every kind, some with too little memory and some with failures.
fn kinds() -> Vec<(&'static str, Deployment)> {
    let mut small = deployment(vec![pool(Role::Mixed, 2)]);
    small.pools[0].blocks = 300;
    let mut small_apart = apart(1, 2);
    small_apart.pools.iter_mut().for_each(|pool| pool.blocks = 300);
    let mut failing = apart(3, 3);
    failing.failures = (0..6)
        .map(|engine| Failure {
            engine,
            at_ns: SECOND * (1 + engine as u64),
            back_after_ns: (engine % 2 == 0).then_some(SECOND),
        })
        .collect();
    let mut mixed_failing = deployment(vec![pool(Role::Mixed, 3)]);
    mixed_failing.failures = vec![Failure { engine: 1, at_ns: 2 * SECOND, back_after_ns: None }];
    let mut switching = apart(3, 3);
    switching.switching = Some(Switching { every_ns: SECOND / 4, ttft_limit: 0.2, itl_limit: 0.02 });
    let mut by_turns = apart(2, 2);
    by_turns.routing = Routing::RoundRobin;
    by_turns.links.streaming = false;
    vec![
        ("mixed", deployment(vec![pool(Role::Mixed, 2)])),
        ("apart", apart(2, 2)),
        ("mixed with little memory", small),
        ("apart with little memory", small_apart),
        ("failing", failing),
        ("mixed and failing", mixed_failing),
        ("switching", switching),
        ("by turns, without streaming", by_turns),
    ]
}

#[test]
fn every_request_ends_once_with_its_tokens() {
    for seed in 0..3 {
        for (kind, deployment) in kinds() {
            let outcome = simulate(&deployment, &requests(60.0, 600, 800, 60, seed));
            check_complete(&outcome, 600);
            let finished = outcome.requests.iter().filter(|request| request.end == Some(End::Finished)).count();
            assert_eq!(finished, 600, "{kind}, seed {seed}");
        }
    }
}

#[test]
fn the_scenarios_are_what_they_are_called() {
    let workload = requests(60.0, 600, 800, 60, 0);
    let of = |name: &str| {
        let (_, deployment) = kinds().into_iter().find(|kind| kind.0 == name).unwrap();
        report(&deployment, &workload)
    };
    assert!(of("mixed with little memory").preemptions > 0);
    assert!(of("failing").migrations > 0 && of("mixed and failing").migrations > 0);
    assert!(of("apart").moved_bytes > 0.0 && of("mixed").moved_bytes == 0.0);
}

#[test]
fn the_same_seed_gives_the_same_result() {
    for (kind, deployment) in kinds() {
        let run = |seed| report(&deployment, &requests(60.0, 400, 800, 60, seed));
        assert_eq!(run(5), run(5), "{kind}");
        assert_ne!(run(5), run(6), "{kind}");
    }
}

#[test]
fn what_fits_nowhere_is_rejected_and_the_rest_goes_on() {
    let mut deployment = deployment(vec![pool(Role::Mixed, 1)]);
    // 160 tokens.
    deployment.pools[0].blocks = 10;
    let lengths = Lengths { prompt: 100, output: 40, spread: 0.9 };
    let outcome = simulate(&deployment, &Workload::Open(poisson(10.0, 300, lengths, None, 3)));
    check_complete(&outcome, 300);
    for request in &outcome.requests {
        let fits = (request.prompt + request.output).div_ceil(16) <= 10;
        assert_eq!(request.end, Some(if fits { End::Finished } else { End::Rejected }));
    }
    assert!(outcome.requests.iter().any(|request| request.end == Some(End::Rejected)));
}

#[test]
fn a_deployment_that_is_gone_for_good_rejects() {
    let mut gone = deployment(vec![pool(Role::Mixed, 1)]);
    gone.failures = vec![Failure { engine: 0, at_ns: SECOND, back_after_ns: None }];
    let outcome = simulate(&gone, &requests(50.0, 200, 800, 60, 0));
    check_complete(&outcome, 200);
    assert!(outcome.requests.iter().any(|request| request.end == Some(End::Rejected)));
}

#[test]
fn closed_streams_send_one_request_after_the_other() {
    let lengths = Lengths { prompt: 500, output: 50, spread: 0.0 };
    let workload = Workload::Closed { streams: 4, lengths, until_ns: 10 * SECOND, seed: 1 };
    let outcome = simulate(&apart(1, 1), &workload);
    check_complete(&outcome, outcome.requests.len());
    // At each arrival but the first ones another request has just ended.
    for request in &outcome.requests[4..] {
        assert!(outcome.requests.iter().any(|other| other.last_ns == request.arrived_ns));
    }
}

#[test]
fn shared_prefixes_are_computed_once_per_engine_and_found_by_the_router() {
    let lengths = Lengths { prompt: 4096, output: 20, spread: 0.0 };
    let shared = SharedPrefix { groups: 16, tokens: 3584 };
    let workload = Workload::Open(poisson(40.0, 2000, lengths, Some(shared), 4));
    let mut deployment = deployment(vec![pool(Role::Mixed, 4)]);
    // Room for a few of the prefixes only.
    deployment.pools[0].blocks = 1800;
    let run = |routing, prefix_cache| report(&Deployment { routing, prefix_cache, ..deployment.clone() }, &workload);
    let none = run(Routing::RoundRobin, false);
    let blind = run(Routing::RoundRobin, true);
    let aware = run(Routing::PrefixAware, true);
    assert_eq!(none.prefix_hits, 0);
    assert!(blind.prefix_hits > 0 && aware.prefix_hits > blind.prefix_hits * 3 / 2, "{blind:?} {aware:?}");
    assert!(aware.ttft.mean < blind.ttft.mean && blind.ttft.mean < none.ttft.mean);
    assert!(aware.attainment >= none.attainment, "{SLO:?}");
}
