//! Each request ends once with all its tokens, whatever happens to the engines, and the same input gives the same result.

mod common;

use cleave_plan::cost::{Fitted, Sample, StepCost, StepWork};
use cleave_plan::sim::{Deployment, End, Failure, Role, Routing, Switching, simulate};
use cleave_plan::workload::{Lengths, SharedPrefix, Workload, poisson};
use common::{SLO, apart, bare, check_complete, constant, deployment, pool, report, requests};

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

/// Rejects once no engine can generate any more, although a prefill engine lives on; and only then.
#[test]
fn without_an_engine_that_generates_only_a_return_or_a_role_switch_helps() {
    let run = |prefills, switches: bool, back_after_ns| {
        let mut deployment = apart(prefills, 1);
        deployment.failures = vec![Failure { engine: prefills, at_ns: SECOND, back_after_ns }];
        let switching = Switching { every_ns: SECOND / 4, ttft_limit: 0.2, itl_limit: 0.02 };
        deployment.switching = switches.then_some(switching);
        let outcome = simulate(&deployment, &requests(20.0, 100, 800, 60, 0));
        check_complete(&outcome, 100);
        outcome.requests.iter().filter(|request| request.end == Some(End::Rejected)).count()
    };
    assert!(run(2, false, None) > 0);
    assert!(run(1, true, None) > 0, "the last prefill engine stays one");
    assert_eq!(run(2, true, None), 0, "a prefill engine becomes a decode engine");
    assert_eq!(run(1, false, Some(SECOND)), 0);
}

#[test]
fn round_robin_uses_every_engine_of_each_role() {
    let mut deployment = apart(3, 3);
    deployment.routing = Routing::RoundRobin;
    let outcome = simulate(&deployment, &requests(20.0, 60, 800, 60, 0));
    assert!(outcome.busy.iter().all(|(_, busy_ns)| *busy_ns > 0), "{:?}", outcome.busy);
}

/// The first request begins a step alone, and where prompts take long beside steps the streams never come together again.
#[test]
fn closed_streams_of_equal_requests_are_not_in_lockstep() {
    let lengths = Lengths { prompt: 400, output: 64, spread: 0.0 };
    let workload = Workload::Closed { streams: 4, lengths, until_ns: 60 * SECOND, seed: 1 };
    let works = [1, 16, 64, 256, 512].map(|rows| StepWork::prefill(rows, 0));
    let samples = works.map(|work| Sample::new(&work, 8e-3 + 7e-4 * work.rows));
    let mut pool = constant(Role::Mixed, 0.0, 64);
    pool.cost = StepCost::Fitted(Fitted::new(&samples));
    pool.max_batch_tokens = 512;
    let outcome = simulate(&bare(vec![pool]), &workload);
    let firsts: Vec<u64> = outcome.requests[..4].iter().map(|request| request.arrived_ns).collect();
    assert_eq!(firsts, [0, 1_000_000, 2_000_000, 3_000_000]);
    for request in &outcome.requests {
        let together = outcome.requests.iter().filter(|other| other.arrived_ns == request.arrived_ns).count();
        assert!(together < 4, "all streams send at {} ns", request.arrived_ns);
    }
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

#[test]
fn an_engine_that_failed_again_does_not_come_back_from_the_first_failure() {
    let mut deployment = deployment(vec![pool(Role::Mixed, 1)]);
    let failure = |at_ns, back_after_ns| Failure { engine: 0, at_ns, back_after_ns };
    deployment.failures = vec![failure(SECOND, Some(3 * SECOND)), failure(2 * SECOND, None)];
    let outcome = simulate(&deployment, &requests(20.0, 200, 800, 60, 0));
    check_complete(&outcome, 200);
    assert!(outcome.requests.iter().all(|request| request.last_ns <= SECOND), "the engine never generates again");
}

#[test]
fn a_stream_whose_requests_are_rejected_does_not_ask_for_ever() {
    let mut small = bare(vec![constant(Role::Mixed, 0.01, 1)]);
    small.pools[0].blocks = 1;
    let lengths = Lengths { prompt: 100, output: 10, spread: 0.0 };
    let workload = Workload::Closed { streams: 2, lengths, until_ns: 10 * SECOND, seed: 1 };
    let outcome = simulate(&small, &workload);
    assert!((100..300).contains(&outcome.requests.len()), "{}", outcome.requests.len());
    assert!(outcome.requests.iter().all(|request| request.end == Some(End::Rejected)));
}
