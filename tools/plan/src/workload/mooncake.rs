//! Traces in Mooncake's format: a JSON object in each line, with timestamp (ms), input_length, output_length and hash_ids.

use super::{Arrival, from_zero};
use serde::Deserialize;
use std::path::Path;

/// Tokens that one of `hash_ids` stands for.
pub const BLOCK: usize = 512;

#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    input_length: usize,
    output_length: usize,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

/// Reads a trace. An error names the file and the line.
pub fn read_mooncake(path: &Path) -> Result<Vec<Arrival>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut arrivals = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fail = |why: &str| format!("{}: line {}: {why}", path.display(), index + 1);
        let line: Line = serde_json::from_str(line).map_err(|error| fail(&error.to_string()))?;
        if !(line.timestamp >= 0.0 && line.timestamp < 1e12) {
            return Err(fail("timestamp is not a number of milliseconds from 0 on"));
        }
        if line.input_length == 0 {
            return Err(fail("input_length is 0"));
        }
        let most = line.input_length.div_ceil(BLOCK);
        if line.hash_ids.len() > most {
            let found = line.hash_ids.len();
            return Err(fail(&format!("{found} hash_ids for {} tokens, of which {BLOCK} make one", line.input_length)));
        }
        // The last block is often not full, and only full blocks can be shared.
        let full = line.hash_ids.len().min(line.input_length / BLOCK);
        arrivals.push(Arrival {
            at_ns: (line.timestamp * 1e6) as u64,
            prompt: line.input_length,
            output: line.output_length.max(1),
            blocks: line.hash_ids[..full].into(),
        });
    }
    if arrivals.is_empty() {
        return Err(format!("{}: no requests", path.display()));
    }
    Ok(from_zero(arrivals))
}
