//! torch and transformers on the same weights and shapes, if they are installed: runs tools/gpu-peer.py and reads its
//! lines.

use super::model::Shape;
use super::report::Report;
use super::{Options, Outcome, locked, words};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Instant;

pub fn run(options: &Options, report: &Mutex<Report>, shape: &Shape, dir: &Path, until: Instant) -> Outcome<()> {
    let Some(script) = &options.peer else { return Ok(()) };
    // The jobs that were measured here, whatever the result.
    let jobs: Vec<Value> = locked(report).rows.iter().filter(|row| row.model == shape.name).filter_map(job).collect();
    let seconds = until.saturating_duration_since(Instant::now()).as_secs();
    let mut child = Command::new("python3")
        .arg(script)
        .args(["--model".as_ref(), dir.as_os_str()])
        .args(["--jobs", &Value::from(jobs).to_string(), "--seconds", &seconds.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(words)?;
    let out = BufReader::new(child.stdout.take().ok_or("no output")?);
    let (send, lines) = channel();
    std::thread::spawn(move || out.lines().map_while(Result::ok).for_each(|line| drop(send.send(line))));
    loop {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => take(&mut locked(report), shape, &line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                child.kill().map_err(words)?;
                child.wait().map_err(words)?;
                eprintln!("  the peer's time is over");
                return Ok(());
            }
        }
    }
    let status = child.wait().map_err(words)?;
    if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", script.display())) }
}

/// Job of a row: "prefill N" or "decode batch B, context C".
fn job(row: &super::report::Row) -> Option<Value> {
    let numbers: Vec<usize> =
        row.what.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect();
    match (row.what.split(' ').next()?, &numbers[..]) {
        ("prefill", [tokens]) => Some(json!({"what": row.what, "kind": "prefill", "batch": 1, "context": tokens})),
        ("decode", [batch, context]) => {
            Some(json!({"what": row.what, "kind": "decode", "batch": batch, "context": context}))
        }
        _ => None,
    }
}

fn take(report: &mut Report, shape: &Shape, line: &str) {
    let Ok(value) = serde_json::from_str::<Value>(line) else { return };
    if let Some(text) = value["note"].as_str() {
        eprintln!("  peer: {text}");
        let text = text.to_string();
        if !report.facts.iter().any(|(_, known)| *known == text) {
            report.facts.push(("peer", text));
        }
    }
    let (Some(what), Some(number)) = (value["what"].as_str(), value["value"].as_f64()) else { return };
    eprintln!("  peer: {what}: {number:.1} ({})", value["how"].as_str().unwrap_or(""));
    let model = if value["device"] == true { "-" } else { shape.name };
    let best = report.peer.entry((model.to_string(), what.to_string())).or_insert(number);
    *best = best.max(number);
    report.write();
}
