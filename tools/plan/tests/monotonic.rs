//! More of a resource never makes a deployment slower.

mod common;

use cleave_plan::hardware::{Device, device};
use cleave_plan::models::model;
use cleave_plan::report::Report;
use cleave_plan::sim::{Deployment, Pool, Role};
use common::{apart, report, requests};

/// Mean times to the first and the last token may not rise by more than this: with other step times other requests meet, and
/// chance decides the rest. The time between tokens may rise: KV that arrives earlier meets more sequences in decode.
const SLACK: f64 = 1.01;

fn no_slower(what: &str, before: &Report, after: &Report) {
    for (name, a, b) in [("TTFT", before.ttft.mean, after.ttft.mean), ("E2E", before.e2e.mean, after.e2e.mean)] {
        assert!(b <= a * SLACK, "{what}: {name} rose from {a} to {b}");
    }
}

#[test]
fn a_faster_link_is_never_slower() {
    for streaming in [false, true] {
        let mut before: Option<Report> = None;
        for rate in [1e9, 4e9, 16e9, 64e9, 1e12] {
            let mut deployment = apart(2, 2);
            deployment.links.rate = rate;
            deployment.links.streaming = streaming;
            let after = report(&deployment, &requests(20.0, 1000, 3000, 100, 1));
            if let Some(before) = &before {
                no_slower(&format!("link of {rate} B/s, streaming {streaming}"), before, &after);
            }
            before = Some(after);
        }
    }
}

#[test]
fn streaming_is_never_slower_than_a_transfer_afterwards() {
    for rate in [8e9, 20e9, 100e9] {
        let mut deployment = apart(2, 2);
        deployment.links.rate = rate;
        let run = |deployment: &Deployment| report(deployment, &requests(5.0, 1000, 8000, 100, 2));
        let streamed = run(&deployment);
        deployment.links.streaming = false;
        no_slower(&format!("{rate} B/s"), &run(&deployment), &streamed);
    }
}

#[test]
fn a_better_device_is_never_slower() {
    let base = device("h100").unwrap();
    let model = model("llama-3.1-8b").unwrap();
    let run = |device: &Device| {
        let pools =
            [(Role::Prefill, 2), (Role::Decode, 2)].map(|(role, n)| Pool::on(device, &model, role, n, 1).unwrap());
        report(&Deployment::new(pools.into(), device, &model), &requests(20.0, 1000, 3000, 100, 3))
    };
    let before = run(&base);
    no_slower("memory", &before, &run(&Device { memory: base.memory * 1.5, ..base.clone() }));
    no_slower("memory rate", &before, &run(&Device { memory_rate: base.memory_rate * 1.5, ..base.clone() }));
    no_slower("node link", &before, &run(&Device { node_link: base.node_link * 1.5, ..base.clone() }));
    no_slower("products", &before, &run(&Device { bf16: base.bf16 * 1.5, ..base.clone() }));
}

#[test]
fn more_engines_are_never_slower() {
    let mut before: Option<Report> = None;
    for engines in [1, 2, 4, 8] {
        let after = report(&apart(engines, engines), &requests(20.0, 1000, 3000, 100, 4));
        if let Some(before) = &before {
            no_slower(&format!("{engines} engines"), before, &after);
        }
        before = Some(after);
    }
}
