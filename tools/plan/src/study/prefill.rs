//! Rate of prefill over the tokens of a step, and the shortest step that saturates.

use super::head;
use crate::cost::{Efficiency, Roofline, StepCost, StepWork};
use crate::hardware::device;
use crate::models::model;

/// Rows for each degree of tensor parallelism.
pub fn rows() -> Result<Vec<Vec<String>>, String> {
    let mut rows = vec![head(["degree", "tokens", "tokens_per_second_per_device", "step_ms", "saturating_tokens"])];
    let (model, device) = (model("r1-distill-llama-70b-fp8")?, device("h100")?);
    for degree in [2, 4, 8] {
        let cost = StepCost::Roofline(Roofline::new(&device, &model, degree, &Efficiency::default()));
        let saturating = cost.saturating_tokens();
        for tokens in (5..=13).map(|power| 1usize << power) {
            let seconds = cost.seconds(&StepWork::prefill(tokens, 0));
            rows.push(vec![
                degree.to_string(),
                tokens.to_string(),
                format!("{:.0}", tokens as f64 / seconds / degree as f64),
                format!("{:.1}", seconds * 1e3),
                saturating.to_string(),
            ]);
        }
    }
    Ok(rows)
}
