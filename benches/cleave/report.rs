//! Rows of results: printed as they arrive, as a table at the end, and as JSON.

use std::io::Write;
use std::path::Path;

#[derive(Clone, serde::Serialize)]
pub struct Row {
    pub model: String,
    pub what: String,
    pub value: f64,
    pub unit: String,
    /// Name and value of the bound or peer, measured in the same run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
}

#[derive(Default)]
pub struct Report {
    pub rows: Vec<Row>,
}

impl Report {
    pub fn add(&mut self, model: &str, what: &str, value: f64, unit: &str) {
        self.push(model, what, value, unit, None);
    }

    /// Adds a value with its ratio to a bound or peer.
    pub fn add_ratio(&mut self, model: &str, what: &str, value: f64, unit: &str, against: &str, of: f64) {
        self.push(model, what, value, unit, Some((against.to_string(), value / of)));
    }

    fn push(&mut self, model: &str, what: &str, value: f64, unit: &str, ratio: Option<(String, f64)>) {
        let row = Row {
            model: model.to_string(),
            what: what.to_string(),
            value,
            unit: unit.to_string(),
            against: ratio.as_ref().map(|r| r.0.clone()),
            ratio: ratio.map(|r| r.1),
        };
        eprintln!("  {}", line(&row));
        self.rows.push(row);
    }

    pub fn value(&self, model: &str, what: &str) -> Option<f64> {
        self.rows.iter().find(|r| r.model == model && r.what == what).map(|r| r.value)
    }

    pub fn print(&self) {
        println!("\n{:<6} {:<38} {:>12} {:<9} against", "model", "what", "value", "unit");
        println!("{}", "-".repeat(100));
        for row in &self.rows {
            println!("{}", line(row));
        }
    }

    pub fn write_json(&self, path: &Path, facts: &serde_json::Value) -> std::io::Result<()> {
        let all = serde_json::json!({"facts": facts, "rows": self.rows});
        let mut file = std::fs::File::create(path)?;
        writeln!(file, "{}", serde_json::to_string_pretty(&all)?)
    }
}

fn line(row: &Row) -> String {
    let against = match (&row.against, row.ratio) {
        (Some(name), Some(ratio)) => format!("{ratio:.2} x {name}"),
        _ => String::new(),
    };
    format!("{:<6} {:<38} {:>12.2} {:<9} {against}", row.model, row.what, row.value, row.unit)
}
