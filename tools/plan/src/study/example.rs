//! The recommendation with which docs/scale.md begins.

use crate::hardware::device;
use crate::models::model;
use crate::planner::{Demand, Source};
use crate::recommend::recommend;
use crate::report::Slo;
use crate::sim::Routing;
use crate::workload::Lengths;

/// Output of the example command in docs/scale.md, whose options are the values here.
pub fn text() -> Result<String, String> {
    let demand = Demand {
        model: model("llama-3.3-70b-fp8")?,
        device: device("h100")?,
        devices: 16,
        source: Source::Poisson { lengths: Lengths { prompt: 3000, output: 150, spread: 0.0 }, shared: None },
        slo: Slo { ttft: 1.0, itl: 0.020 },
        attainment: 0.95,
        max_sequences: 256,
        routing: Routing::LeastLoaded,
        seed: 1,
    };
    recommend(&demand, None)
}
