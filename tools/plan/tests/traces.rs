//! The public trace formats, from small samples in the same form, and what is said about bad ones.

mod common;

use cleave_plan::sim::Role;
use cleave_plan::workload::Workload;
use common::{deployment, pool, report};
use std::path::{Path, PathBuf};

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces").join(name)
}

fn arrivals(name: &str) -> Vec<(u64, usize, usize, usize)> {
    let Workload::Open(arrivals) = Workload::trace(&sample(name)).unwrap() else { panic!("a trace has arrivals") };
    arrivals.iter().map(|a| (a.at_ns / 1_000_000, a.prompt, a.output, a.blocks.len())).collect()
}

#[test]
fn azure_traces_are_read() {
    // In order of time, from 0 on; the request without a prompt is left out, and an answer has a token.
    assert_eq!(arrivals("azure.csv"), [(0, 374, 44, 0), (1250, 396, 109, 0), (1500, 90, 1, 0), (61_250, 7000, 8, 0)]);
}

#[test]
fn mooncake_traces_are_read() {
    // Only full blocks of 512 tokens keep their names.
    assert_eq!(
        arrivals("mooncake.jsonl"),
        [(0, 1536, 20, 3), (0, 1300, 5, 2), (2500, 1600, 40, 3), (4000, 300, 12, 0)]
    );
}

#[test]
fn a_trace_can_be_replayed_faster() {
    let trace = Workload::trace(&sample("azure.csv")).unwrap().faster(10.0);
    let Workload::Open(arrivals) = &trace else { panic!("a trace has arrivals") };
    assert_eq!(arrivals[3].at_ns / 1_000_000, 6125);
}

#[test]
fn the_names_of_a_mooncake_trace_are_prefixes_to_find() {
    let trace = Workload::trace(&sample("mooncake.jsonl")).unwrap();
    // The third request has the first two blocks of the first.
    assert_eq!(report(&deployment(vec![pool(Role::Mixed, 1)]), &trace).prefix_hits, 1024);
}

#[test]
fn errors_name_the_file_and_the_line() {
    let directory = std::env::temp_dir().join(format!("cleave-plan-traces-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,10,5\n";
    let mooncake = "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 5, \"hash_ids\": [1, 2]}\n";
    let cases = [
        ("azure.csv", "time,ContextTokens,GeneratedTokens\n", "line 1: there is no column TIMESTAMP"),
        ("azure.csv", &format!("{azure}yesterday,10,5\n"), "line 3: TIMESTAMP \"yesterday\""),
        ("azure.csv", &format!("{azure}2023-11-16 18:17:04.0,-1,5\n"), "line 3: ContextTokens \"-1\""),
        ("azure.csv", &format!("{azure}2023-11-16 18:17:04.0,1,many\n"), "line 3: GeneratedTokens \"many\""),
        ("azure.csv", &format!("{azure}2023-11-16 18:17:04.0,1\n"), "line 3"),
        ("azure.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        ("mooncake.jsonl", &format!("{mooncake}{{\"timestamp\": 0}}\n"), "line 2: missing field `input_length`"),
        ("mooncake.jsonl", &format!("{mooncake}nonsense\n"), "line 2: expected"),
        ("mooncake.jsonl", &mooncake.replace("600", "400"), "line 1: 2 hash_ids for 400 tokens"),
        ("mooncake.jsonl", &mooncake.replace("600", "0"), "line 1: input_length is 0"),
        ("mooncake.jsonl", &mooncake.replace(": 0,", ": -5,"), "line 1: timestamp"),
        ("mooncake.jsonl", "", "no requests"),
    ];
    for (name, text, expected) in cases {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        let error = Workload::trace(&path).unwrap_err();
        assert!(error.contains(name) && error.contains(expected), "{text:?}: {error}");
    }
    std::fs::remove_dir_all(&directory).unwrap();
    let error = Workload::trace(Path::new("no-such-trace.csv")).unwrap_err();
    assert!(error.contains("no-such-trace.csv"), "{error}");
}
