//! NVIDIA Dynamo's published comparison: R1-Distill-Llama-70B in FP8 on H100s, prompts of 3000 and answers of 150 tokens, one
//! node and two. For each limit between tokens, the best mixed layout against the best with separate pools.

use super::head;
use crate::hardware::device;
use crate::models::model;
use crate::planner::{Demand, Kind, Layout, Peak, Source, parallel};
use crate::report::Slo;
use crate::sim::Routing;
use crate::workload::Lengths;

/// Limits between tokens in milliseconds. Their inverse is the tokens/s that a user sees.
const ITL_MS: [f64; 7] = [12.0, 15.0, 20.0, 25.0, 33.0, 50.0, 100.0];
/// Limit to the first token in seconds.
const TTFT: f64 = 2.0;
const REQUESTS: usize = 700;
const APART: usize = 8;

/// A row for each number of devices, limit and kind of layout.
pub fn rows() -> Result<Vec<Vec<String>>, String> {
    let mut rows =
        vec![head(["devices", "itl_limit_ms", "kind", "layout", "tokens_per_second_per_device", "ttft_p50_ms"])];
    let cases: Vec<_> = [8, 16].into_iter().flat_map(|devices| KINDS.map(|kind| (devices, kind))).collect();
    let found = parallel(&cases, |&(devices, (_, kind))| frontier(devices, kind));
    let found: Vec<Vec<Option<Peak>>> = found.into_iter().collect::<Result<_, _>>()?;
    for (cases, found) in cases.chunks(KINDS.len()).zip(found.chunks(KINDS.len())) {
        for (index, itl_ms) in ITL_MS.into_iter().enumerate() {
            for ((devices, (name, _)), peaks) in cases.iter().zip(found) {
                rows.push(row(*devices, itl_ms, name, peaks[index].as_ref()));
            }
        }
    }
    Ok(rows)
}

const KINDS: [(&str, Kind); 3] = [("whole prompts", Kind::Whole), ("chunked", Kind::Chunked), ("apart", Kind::Apart)];

/// The best of a kind for each limit, from the tightest on. What keeps a limit keeps a looser one, too.
fn frontier(devices: usize, kind: Kind) -> Result<Vec<Option<Peak>>, String> {
    let mut best: Option<Peak> = None;
    let mut all = Vec::new();
    for itl_ms in ITL_MS {
        let demand = demand(devices, itl_ms)?;
        let mut layouts: Vec<Layout> = best.iter().map(|peak| peak.layout).collect();
        layouts.extend(demand.layouts(kind, APART));
        let found = demand.best(&layouts, REQUESTS);
        best = found.into_iter().chain(best).max_by(|a, b| a.rate.total_cmp(&b.rate));
        all.push(best.clone());
    }
    Ok(all)
}

fn demand(devices: usize, itl_ms: f64) -> Result<Demand, String> {
    Ok(Demand {
        model: model("r1-distill-llama-70b-fp8")?,
        device: device("h100")?,
        devices,
        source: Source::Poisson { lengths: Lengths { prompt: 3000, output: 150, spread: 0.0 }, shared: None },
        slo: Slo { ttft: TTFT, itl: itl_ms / 1e3 },
        attainment: 0.95,
        max_sequences: super::MAX_SEQUENCES,
        routing: Routing::LeastLoaded,
        seed: 1,
    })
}

fn row(devices: usize, itl_ms: f64, kind: &str, peak: Option<&Peak>) -> Vec<String> {
    let mut row = vec![devices.to_string(), itl_ms.to_string(), kind.to_string()];
    row.extend(match peak {
        Some(peak) => [
            peak.layout.to_string(),
            format!("{:.1}", peak.tokens_per_device()),
            format!("{:.0}", peak.report.ttft.p50 * 1e3),
        ],
        None => ["none".into(), "0".into(), String::new()],
    });
    row
}
