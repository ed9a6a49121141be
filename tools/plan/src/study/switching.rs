//! Role switches against fixed pools while the mix of long prompts and long answers moves over a day, of which an hour takes half
//! a minute here: still long beside a request and a switch.

use super::head;
use crate::hardware::device;
use crate::models::model;
use crate::planner::{highest, parallel};
use crate::report::{Report, Slo};
use crate::sim::{Deployment, Pool, Role, Switching, simulate};
use crate::workload::{Arrival, Lengths, Workload, poisson};

const ENGINES: usize = 8;
const SLO: Slo = Slo { ttft: 1.0, itl: 0.020 };
const ATTAINMENT: f64 = 0.95;
const HOUR: f64 = 30.0;
/// Slices of a day, in each of which the rates are constant.
const SLICES: usize = 96;

/// Highest rates in requests/s, and lengths: at noon clients read long documents, and at midnight they write long answers.
const READING: (f64, Lengths) = (22.0, Lengths { prompt: 8000, output: 100, spread: 0.3 });
const WRITING: (f64, Lengths) = (34.0, Lengths { prompt: 500, output: 800, spread: 0.3 });
/// Share of the highest rate that is left twelve hours later.
const LEAST: f64 = 0.1;

/// Engines of a comparison.
#[derive(Clone, Copy)]
enum Fleet {
    /// Prefill engines at the start, of all [`ENGINES`], and whether roles are switched.
    Apart(usize, bool),
    /// Mixed engines with a step budget.
    Mixed(usize),
}

/// A row for each fleet: how many requests keep the limits at the same load, and the load at which 95 % do.
pub fn rows() -> Result<Vec<Vec<String>>, String> {
    let mut rows = vec![head([
        "fleet",
        "prefill",
        "decode",
        "within_limits",
        "ttft_p99_ms",
        "itl_p99_ms",
        "switches",
        "highest_load",
    ])];
    let fixed = (2..=6).map(|prefill| Fleet::Apart(prefill, false));
    let switched = (2..=6).map(|prefill| Fleet::Apart(prefill, true));
    let mixed = [256, 512, 1024].map(Fleet::Mixed);
    let fleets: Vec<Fleet> = fixed.chain(switched).chain(mixed).collect();
    for row in parallel(&fleets, |fleet| row(*fleet)) {
        rows.push(row?);
    }
    Ok(rows)
}

fn row(fleet: Fleet) -> Result<Vec<String>, String> {
    let deployment = deployment(fleet)?;
    let at = |load: f64| Report::new(&deployment, &simulate(&deployment, &day(load)), &SLO);
    let report = at(1.0);
    let load = highest(1.0, |load| (at(load).attainment >= ATTAINMENT).then_some(())).map_or(0.0, |found| found.0);
    let (name, [prefill, decode]) = match fleet {
        Fleet::Apart(prefill, false) => ("fixed".into(), [prefill, ENGINES - prefill].map(|n| n.to_string())),
        Fleet::Apart(prefill, true) => ("switching".into(), [prefill, ENGINES - prefill].map(|n| n.to_string())),
        Fleet::Mixed(budget) => (format!("mixed, chunks of {budget}"), [String::new(), String::new()]),
    };
    Ok(vec![
        name,
        prefill,
        decode,
        format!("{:.1}", report.attainment * 100.0),
        format!("{:.0}", report.ttft.p99 * 1e3),
        format!("{:.1}", report.itl.p99 * 1e3),
        report.switches.to_string(),
        format!("{load:.2}"),
    ])
}

fn deployment(fleet: Fleet) -> Result<Deployment, String> {
    let (model, device) = (model("llama-3.1-8b")?, device("h100")?);
    let pool = |role, engines| Pool::on(&device, &model, role, engines, 1).ok_or("the model does not fit");
    let pools = match fleet {
        Fleet::Apart(prefill, _) => vec![pool(Role::Prefill, prefill)?, pool(Role::Decode, ENGINES - prefill)?],
        Fleet::Mixed(budget) => vec![Pool { max_batch_tokens: budget, ..pool(Role::Mixed, ENGINES)? }],
    };
    let mut deployment = Deployment::new(pools, &device, &model);
    let switching = Switching { every_ns: 1_000_000_000, ttft_limit: SLO.ttft, itl_limit: SLO.itl };
    deployment.switching = matches!(fleet, Fleet::Apart(_, true)).then_some(switching);
    Ok(deployment)
}

/// The requests of a day, with the rates multiplied by `load`.
fn day(load: f64) -> Workload {
    let seconds = 24.0 * HOUR / SLICES as f64;
    let mut all: Vec<Arrival> = Vec::new();
    for slice in 0..SLICES {
        let noon = 0.5 - 0.5 * ((slice as f64 + 0.5) / SLICES as f64 * std::f64::consts::TAU).cos();
        for (kind, (most, lengths), share) in [(0, READING, noon), (1, WRITING, 1.0 - noon)] {
            let rate = load * most * (LEAST + (1.0 - LEAST) * share);
            let arrivals = poisson(rate, (rate * seconds).round() as usize, lengths, None, 2 * slice as u64 + kind);
            let begin_ns = (slice as f64 * seconds * 1e9) as u64;
            all.extend(arrivals.into_iter().map(|one| Arrival { at_ns: one.at_ns + begin_ns, ..one }));
        }
    }
    all.sort_by_key(|arrival| arrival.at_ns);
    Workload::Open(all)
}
