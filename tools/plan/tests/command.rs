//! The command as its users meet it: what it prints, and what it says about wrong input.

use std::path::PathBuf;
use std::process::{Command, Output};

fn run(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cleave-plan")).args(words).output().unwrap()
}

/// Error text of a command that must fail.
fn refusal(words: &[&str]) -> String {
    let output = run(words);
    assert!(!output.status.success() && output.stdout.is_empty(), "{words:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn printed(words: &[&str]) -> String {
    let output = run(words);
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A file that is removed at the end.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> File {
        let path = std::env::temp_dir().join(format!("cleave-plan-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        File(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

const SIMULATE: [&str; 5] = ["simulate", "--model", "llama-3.1-8b", "--mixed", "1"];

#[test]
fn steps_longer_than_those_measured_are_refused() {
    let head = "rows,logits,sequences,decode_context,prefill_pairs,seconds";
    let steps = File::new("steps.csv", &format!("{head}\n1,1,1,64,0,0.004\n64,1,1,0,2080,0.05\n"));
    let simulate = [&SIMULATE, ["--samples", steps.path()].as_slice()].concat();
    let error = refusal(&[&simulate, ["--budget", "128"].as_slice()].concat());
    assert!(error.contains("has no steps of more than 64 tokens: give --budget 64"), "{error}");
    // The prompt takes 16 steps of the longest length.
    let text = printed(&[&simulate, ["--count", "1", "--output", "1", "--prompt", "1024"].as_slice()].concat());
    assert!(text.contains("\n16 steps in"), "{text}");
}

#[test]
fn traces_of_both_forms_are_replayed() {
    for name in ["azure.csv", "mooncake.jsonl"] {
        let trace = format!("{}/tests/traces/{name}", env!("CARGO_MANIFEST_DIR"));
        let text = printed(&[&SIMULATE, ["--trace", &trace].as_slice()].concat());
        assert!(text.contains("0 rejected"), "{text}");
        let text =
            printed(&["recommend", "--model", "llama-3.1-8b", "--gpu", "h100", "--gpus", "1", "--trace", &trace]);
        assert!(text.contains("Recommended: mixed 1 x TP1"), "{text}");
    }
}

#[test]
fn a_trace_without_a_rate_is_refused() {
    let line = "{\"timestamp\": 5, \"input_length\": 600, \"output_length\": 20}\n";
    for lines in [1, 3] {
        let trace = File::new(&format!("{lines}.jsonl"), &line.repeat(lines));
        let error =
            refusal(&["recommend", "--model", "llama-3.1-8b", "--gpu", "h100", "--gpus", "1", "--trace", trace.path()]);
        assert!(error.contains("all arrive at once"), "{error}");
    }
}

#[test]
fn requests_that_fit_nowhere_are_explained() {
    let text = printed(&[&SIMULATE, ["--kv-tokens", "1600", "--prompt", "2000", "--count", "3"].as_slice()].concat());
    assert!(text.contains("3 rejected") && text.contains("room for 1600 tokens"), "{text}");
}

#[test]
fn what_is_not_known_is_named_with_what_is() {
    for (words, named) in [
        (["--model", "llama-9", "--gpu", "h100"], "llama-3.3-70b-fp8"),
        (["--model", "llama-3.1-8b", "--gpu", "h1000"], "h200"),
        (["--model", "/nowhere", "--gpu", "h100"], "/nowhere"),
    ] {
        let error = refusal(&[["recommend", "--gpus", "8"].as_slice(), &words].concat());
        assert!(error.contains(named), "{error}");
    }
    let error = refusal(&["recommend", "--model", "llama-3.3-70b", "--gpu", "l40s", "--gpus", "1"]);
    assert!(error.contains("llama-3.3-70b does not fit into 1 x l40s"), "{error}");
}
