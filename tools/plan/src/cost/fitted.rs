//! Step durations fitted to measurements: a piecewise linear function of the rows that never falls, plus a cost for each logit, each token of
//! context that decodes read, and each pair of a query and a key in prompts.

use super::StepWork;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One measured kind of step. The fields are the columns of the CSV file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// See [`StepWork::rows`].
    pub rows: f64,
    /// See [`StepWork::logits`].
    pub logits: f64,
    /// See [`StepWork::sequences`].
    pub sequences: f64,
    /// See [`StepWork::decode_context`].
    pub decode_context: f64,
    /// See [`StepWork::prefill_pairs`].
    pub prefill_pairs: f64,
    /// Duration in seconds.
    pub seconds: f64,
}

impl Sample {
    /// The measured duration of some work.
    pub fn new(work: &StepWork, seconds: f64) -> Sample {
        let StepWork { rows, logits, sequences, decode_context, prefill_pairs } = *work;
        Sample { rows, logits, sequences, decode_context, prefill_pairs, seconds }
    }

    fn work(&self) -> StepWork {
        let Sample { rows, logits, sequences, decode_context, prefill_pairs, .. } = *self;
        StepWork { rows, logits, sequences, decode_context, prefill_pairs }
    }
}

/// Reads samples from a CSV file with the columns of [`Sample`].
pub fn read_samples(path: &Path) -> Result<Vec<Sample>, String> {
    let fail = |why: String| format!("{}: {why}", path.display());
    let mut reader = csv::Reader::from_path(path).map_err(|error| fail(error.to_string()))?;
    let mut samples = Vec::new();
    for (index, row) in reader.deserialize().enumerate() {
        let sample: Sample = row.map_err(|error| fail(error.to_string()))?;
        // The head is line 1.
        let line = index + 2;
        if !(sample.rows >= 1.0 && sample.seconds > 0.0 && sample.seconds.is_finite()) {
            return Err(fail(format!("line {line}: a sample needs at least one row and a duration above 0")));
        }
        let counts = [sample.rows, sample.logits, sample.sequences, sample.decode_context, sample.prefill_pairs];
        if counts.iter().any(|&count| !(count.is_finite() && count >= 0.0)) {
            return Err(fail(format!("line {line}: work is counted from 0 on")));
        }
        samples.push(sample);
    }
    if samples.is_empty() {
        return Err(fail("no samples".into()));
    }
    Ok(samples)
}

/// The fitted function.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// Numbers of rows, ascending.
    knots: Vec<f64>,
    /// Seconds at each knot.
    at_knots: Vec<f64>,
    /// Seconds per logit, per token of context, and per pair.
    per_unit: [f64; 3],
}

impl Fitted {
    /// Fits to samples by least squares of the relative error, with no negative cost. Each number of rows that was measured
    /// becomes a knot, and none is below the one before, so a lucky measurement does not make longer steps cheaper.
    pub fn new(samples: &[Sample]) -> Fitted {
        let mut knots: Vec<f64> = samples.iter().map(|sample| sample.rows).collect();
        knots.sort_by(f64::total_cmp);
        knots.dedup();
        let features = |work: &StepWork| {
            let mut row = vec![0.0; knots.len()];
            // The unknowns are the rises from knot to knot: that to a knot counts for it and for all after it.
            for (knot, weight) in interpolation(&knots, work.rows) {
                row[..=knot].iter_mut().for_each(|rise| *rise += weight);
            }
            row.extend([work.logits, work.decode_context, work.prefill_pairs]);
            row
        };
        // A row that is divided by its duration has the target 1.
        let rows: Vec<Vec<f64>> = samples
            .iter()
            .map(|sample| features(&sample.work()).into_iter().map(|f| f / sample.seconds).collect())
            .collect();
        let found = least_squares(&rows);
        let (rises, units) = found.split_at(knots.len());
        let sums = rises.iter().scan(0.0, |sum, rise| {
            *sum += rise;
            Some(*sum)
        });
        Fitted { at_knots: sums.collect(), per_unit: [units[0], units[1], units[2]], knots }
    }

    /// The most rows for which there is a measurement.
    pub fn most_rows(&self) -> usize {
        self.knots.last().map_or(0, |&rows| rows as usize)
    }

    /// Duration of a step in seconds. Beyond the last knot the last slope goes on.
    pub fn seconds(&self, work: &StepWork) -> f64 {
        let rows: f64 = interpolation(&self.knots, work.rows).iter().map(|&(knot, w)| w * self.at_knots[knot]).sum();
        let [logit, context, pair] = self.per_unit;
        (rows + logit * work.logits + context * work.decode_context + pair * work.prefill_pairs).max(0.0)
    }

    /// Mean and largest relative error over samples.
    pub fn errors(&self, samples: &[Sample]) -> (f64, f64) {
        let errors = samples.iter().map(|sample| (self.seconds(&sample.work()) / sample.seconds - 1.0).abs());
        let (sum, most) = errors.fold((0.0, 0.0f64), |(sum, most), error| (sum + error, most.max(error)));
        (sum / samples.len() as f64, most)
    }
}

/// The knots around `rows` and their weights. Below the first knot its value holds.
fn interpolation(knots: &[f64], rows: f64) -> [(usize, f64); 2] {
    let above = knots.partition_point(|&knot| knot < rows).min(knots.len() - 1);
    if above == 0 || rows <= knots[0] {
        return [(0, 1.0), (0, 0.0)];
    }
    let (low, high) = (knots[above - 1], knots[above]);
    let share = (rows - low) / (high - low);
    [(above - 1, 1.0 - share), (above, share)]
}

/// Least squares without negative coefficients for targets that are all 1, by coordinate descent (Franc, Hlaváč and Navara,
/// Sequential coordinate-wise algorithm for the non-negative least squares problem, 2005).
fn least_squares(rows: &[Vec<f64>]) -> Vec<f64> {
    let n = rows[0].len();
    let squares: Vec<f64> = (0..n).map(|i| rows.iter().map(|row| row[i] * row[i]).sum()).collect();
    let mut found = vec![0.0; n];
    let mut residual = vec![1.0; rows.len()];
    for _ in 0..20_000 {
        let mut moved = 0.0f64;
        for i in (0..n).filter(|&i| squares[i] > 0.0) {
            let slope: f64 = rows.iter().zip(&residual).map(|(row, left)| row[i] * left).sum();
            let next = (found[i] + slope / squares[i]).max(0.0);
            let change = next - found[i];
            if change != 0.0 {
                rows.iter().zip(&mut residual).for_each(|(row, left)| *left -= row[i] * change);
                moved = moved.max(change.abs() * squares[i].sqrt());
                found[i] = next;
            }
        }
        if moved < 1e-9 {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth(work: &StepWork) -> f64 {
        1e-3 + 2e-4 * work.rows.max(16.0) + 1e-5 * work.logits + 3e-7 * work.decode_context + 1e-8 * work.prefill_pairs
    }

    fn samples() -> Vec<Sample> {
        let mut works = Vec::new();
        for batch in [1, 2, 4, 8, 16] {
            works.extend([64.0, 512.0, 2048.0].map(|context| StepWork::decode(batch, context)));
        }
        for tokens in [16, 64, 128, 512] {
            works.extend([0, 512, 1536].map(|start| StepWork::prefill(tokens, start)));
        }
        works.iter().map(|work| Sample::new(work, truth(work))).collect()
    }

    #[test]
    fn the_fit_finds_the_function_behind_the_samples() {
        let samples = samples();
        let fitted = Fitted::new(&samples);
        let (mean, most) = fitted.errors(&samples);
        assert!(mean < 0.01 && most < 0.03, "{mean} {most}");
        // Between the knots, and beyond the last one.
        for work in [StepWork::decode(12, 1000.0), StepWork::prefill(300, 700), StepWork::prefill(1024, 0)] {
            let error = fitted.seconds(&work) / truth(&work) - 1.0;
            assert!(error.abs() < 0.05, "{work:?}: {error}");
        }
    }

    #[test]
    fn no_cost_is_negative() {
        let mut samples = samples();
        // A measurement that was lucky.
        samples[0].seconds /= 3.0;
        let fitted = Fitted::new(&samples);
        assert!(fitted.per_unit.iter().chain(&fitted.at_knots).all(|&cost| cost >= 0.0));
    }

    #[test]
    fn longer_steps_are_never_cheaper() {
        let mut samples = samples();
        // The longest step was lucky, so that the last slope of the measurements falls.
        samples.iter_mut().filter(|sample| sample.rows == 512.0).for_each(|sample| sample.seconds /= 6.0);
        let fitted = Fitted::new(&samples);
        let times: Vec<f64> = (0..12).map(|power| fitted.seconds(&StepWork::decode(1 << power, 1.0))).collect();
        assert!(times.is_sorted() && times[11] > 0.0, "{times:?}");
    }

    #[test]
    fn a_bad_line_is_named() {
        let directory = std::env::temp_dir().join(format!("cleave-plan-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("samples.csv");
        let head = "rows,logits,sequences,decode_context,prefill_pairs,seconds\n1,1,1,64,0,0.004\n";
        for (line, part) in [
            ("2,1,1,64,0,-1\n", "line 3"),
            ("2,1,1,NaN,0,1\n", "line 3"),
            ("2,1,one,64,0,1\n", "line: 3"),
            ("2,1\n", "line: 3"),
        ] {
            std::fs::write(&path, format!("{head}{line}")).unwrap();
            let error = read_samples(&path).unwrap_err();
            assert!(error.contains("samples.csv") && error.contains(part), "{error}");
        }
        std::fs::write(&path, head).unwrap();
        assert_eq!(read_samples(&path).unwrap().len(), 1);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
