//! Rows of results: printed and written as they arrive, and as a Markdown table at the end.

use super::super::host::Outcome;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Bound of a value.
#[derive(Clone, Debug)]
pub enum Bound {
    None,
    /// Tokens/s if each moves this many bytes at the copy rate.
    Bytes(f64),
    /// Tokens/s if each takes this many operations at the matrix rate.
    Flops(f64),
    /// Upper limit in the value's unit.
    Most(f64),
}

#[derive(Clone, Debug)]
pub struct Row {
    pub model: String,
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    pub bound: Bound,
    /// Target as a fraction of the bound.
    pub target: Option<f64>,
}

#[derive(Debug, Default)]
pub struct Report {
    pub simulated: bool,
    /// Date, device, driver and similar facts.
    pub facts: Vec<(&'static str, String)>,
    pub rows: Vec<Row>,
    /// Results of another program on the same weights, by model and measure.
    pub peer: BTreeMap<(String, String), f64>,
    pub failures: Vec<String>,
    pub json: Option<PathBuf>,
}

pub const COPY: &str = "copy on the device";
pub const MATRIX: &str = "largest matrix product";

impl Report {
    pub fn add(&mut self, model: &str, what: &str, value: f64, unit: &'static str, bound: Bound, target: Option<f64>) {
        self.rows.push(Row { model: model.to_string(), what: what.to_string(), value, unit, bound, target });
        let row = &self.rows[self.rows.len() - 1];
        eprintln!("  {model}: {what}: {} {unit}", number(row.value));
        self.write();
    }

    /// Records a phase that failed.
    pub fn phase(&mut self, name: &str, outcome: Outcome<()>) {
        if let Err(error) = outcome {
            eprintln!("  {name} FAILED: {error}");
            self.failures.push(format!("{name}: {error}"));
            self.write();
        }
    }

    fn value(&self, what: &str) -> Option<f64> {
        self.rows.iter().find(|row| row.model == "-" && row.what == what).map(|row| row.value)
    }

    /// Rate of the faster matrix product of both programs, in TFLOP/s.
    fn matrix(&self) -> Option<f64> {
        let theirs = self.peer.get(&("-".to_string(), MATRIX.to_string())).copied();
        self.value(MATRIX).into_iter().chain(theirs).reduce(f64::max)
    }

    /// Fraction of its bound that a row reaches.
    fn ratio(&self, row: &Row) -> Option<f64> {
        if self.simulated {
            return None; // CPU times say nothing about a device
        }
        match row.bound {
            Bound::None => None,
            Bound::Bytes(bytes) => Some(row.value * bytes / (self.value(COPY)? * 1e9)),
            Bound::Flops(flops) => Some(row.value * flops / (self.matrix()? * 1e12)),
            Bound::Most(most) => Some(most / row.value),
        }
    }

    pub fn markdown(&self) -> String {
        let facts: Vec<String> = self.facts.iter().map(|(key, value)| format!("{key} {value}")).collect();
        let mut out = format!("{}\n\n", facts.join(", "));
        if self.simulated {
            out += "**simulated**: no GPU ran this; the times are of a simulator on CPUs and mean nothing\n\n";
        }
        out +=
            "| model | what | value | of its bound | target | of the peer |\n| --- | --- | --- | --- | --- | --- |\n";
        for row in &self.rows {
            let ratio = self.ratio(row);
            let bound = match (&row.bound, ratio) {
                (_, None) if self.simulated => "simulated".to_string(),
                (Bound::Most(_), _) | (_, None) => String::new(),
                (Bound::Bytes(_), Some(ratio)) => format!("{:.1} % of copying", 100.0 * ratio),
                (_, Some(ratio)) => format!("{:.1} % of the matrix rate", 100.0 * ratio),
            };
            let reached = |aim: f64| match ratio {
                _ if self.simulated => "",
                Some(ratio) if ratio >= aim => ", reached",
                Some(_) => ", MISSED",
                None => ", unknown",
            };
            let target = match (&row.bound, row.target) {
                (Bound::Most(most), _) => format!("< {} {}{}", number(*most), row.unit, reached(1.0)),
                (_, Some(target)) => format!("≥ {:.0} %{}", 100.0 * target, reached(target)),
                _ => String::new(),
            };
            let peer = match self.peer.get(&(row.model.clone(), row.what.clone())) {
                Some(theirs) if !self.simulated => format!("{:.2} x {}", row.value / theirs, number(*theirs)),
                _ => String::new(),
            };
            let Row { model, what, value, unit, .. } = row;
            out += &format!("| {model} | {what} | {} {unit} | {bound} | {target} | {peer} |\n", number(*value));
        }
        for failure in &self.failures {
            out += &format!("\nFAILED: {failure}");
        }
        out
    }

    /// Writes the results so far, so that nothing is lost if the run is cut off.
    pub fn write(&self) {
        let Some(path) = &self.json else { return };
        let rows: Vec<serde_json::Value> = self
            .rows
            .iter()
            .map(|row| {
                let theirs = self.peer.get(&(row.model.clone(), row.what.clone()));
                json!({"model": row.model, "what": row.what, "value": row.value, "unit": row.unit,
                    "of_bound": self.ratio(row), "target": row.target, "peer": theirs})
            })
            .collect();
        let facts: serde_json::Map<String, serde_json::Value> =
            self.facts.iter().map(|(key, value)| (key.to_string(), json!(value))).collect();
        let all = json!({"simulated": self.simulated, "facts": facts, "rows": rows, "failures": self.failures});
        if let Err(error) = std::fs::write(path, format!("{all:#}\n")) {
            eprintln!("cannot write {}: {error}", path.display());
        }
    }
}

/// Formats a number with at least three digits.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_string(),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}
