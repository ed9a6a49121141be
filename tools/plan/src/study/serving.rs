//! Goodput per GPU of mixed engines with whole prompts, mixed engines with chunks, and separate pools, over several workloads.

use super::{conversations, head};
use crate::hardware::device;
use crate::models::model;
use crate::planner::{Demand, Kind, Peak, Source, parallel};
use crate::report::Slo;
use crate::sim::Routing;
use crate::workload::Lengths;

const MODELS: [&str; 2] = ["llama-3.3-70b-fp8", "gpt-oss-120b"];
const REQUESTS: usize = 500;
const APART: usize = 6;
const DEVICES: usize = 8;

/// Traffic with limits to the first token and between tokens, in seconds.
struct Case {
    name: &'static str,
    /// Mean tokens of prompts and answers; None for the trace of conversations.
    lengths: Option<(usize, usize)>,
    ttft: f64,
    itl: f64,
}

const CASES: [Case; 5] = [
    Case { name: "chat", lengths: Some((1000, 200)), ttft: 1.0, itl: 0.030 },
    Case { name: "summarising", lengths: Some((8000, 200)), ttft: 4.0, itl: 0.030 },
    Case { name: "reasoning", lengths: Some((500, 4000)), ttft: 2.0, itl: 0.030 },
    Case { name: "code", lengths: Some((3000, 150)), ttft: 1.0, itl: 0.020 },
    Case { name: "conversations", lengths: None, ttft: 1.0, itl: 0.030 },
];

/// A row for each model and workload.
pub fn rows() -> Result<Vec<Vec<String>>, String> {
    let mut rows = vec![head([
        "model",
        "workload",
        "prompt",
        "output",
        "ttft_limit_ms",
        "itl_limit_ms",
        "whole",
        "chunked",
        "apart",
        "whole_layout",
        "chunked_layout",
        "apart_layout",
    ])];
    let cases = MODELS.into_iter().flat_map(|name| CASES.iter().map(move |case| (name, case)));
    let kinds: Vec<_> =
        cases.clone().flat_map(|case| [Kind::Whole, Kind::Chunked, Kind::Apart].map(|kind| (case, kind))).collect();
    let best = parallel(&kinds, |&((name, case), kind)| {
        let demand = demand(name, case)?;
        Ok::<_, String>(demand.best(&demand.layouts(kind, APART), REQUESTS))
    });
    let best: Vec<Option<Peak>> = best.into_iter().collect::<Result<_, _>>()?;
    for ((name, case), best) in cases.zip(best.chunks(3)) {
        let (prompt, output) = demand(name, case)?.source.means();
        let mut row = vec![name.to_string(), case.name.to_string()];
        row.extend([prompt, output, case.ttft * 1e3, case.itl * 1e3].map(|number| format!("{number:.0}")));
        row.extend(best.iter().map(|peak| format!("{:.3}", peak.as_ref().map_or(0.0, Peak::rate_per_device))));
        row.extend(best.iter().map(|peak| peak.as_ref().map_or("none".into(), |peak| peak.layout.to_string())));
        rows.push(row);
    }
    Ok(rows)
}

fn demand(model_name: &str, case: &Case) -> Result<Demand, String> {
    let source = match case.lengths {
        Some((prompt, output)) => Source::Poisson { lengths: Lengths { prompt, output, spread: 0.5 }, shared: None },
        None => Source::Trace(conversations::trace()),
    };
    Ok(Demand {
        model: model(model_name)?,
        device: device("h100")?,
        devices: DEVICES,
        routing: if case.lengths.is_some() { Routing::LeastLoaded } else { Routing::PrefixAware },
        source,
        slo: Slo { ttft: case.ttft, itl: case.itl },
        attainment: 0.95,
        max_sequences: super::MAX_SEQUENCES,
        seed: 1,
    })
}
