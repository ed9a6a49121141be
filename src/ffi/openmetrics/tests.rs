//! The text held against the rules of OpenMetrics 1.0 and against docs/metrics.md.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

/// A sample's name, labels and value.
type Sample = (String, BTreeMap<String, String>, f64);

/// One sample line, with the escapes of its label values undone.
fn sample(line: &str) -> Sample {
    let (name, rest) = line.split_once('{').expect("labels");
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    loop {
        let (label, after) = rest.split_once("=\"").expect("a label");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("a closing quote") {
                (_, '\\') => value.push(match chars.next().expect("an escape").1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    other => panic!("escape \\{other} in {line}"),
                }),
                (at, '"') => break at,
                (_, c) => value.push(c),
            }
        };
        assert!(labels.insert(label.to_string(), value).is_none(), "label {label} twice: {line}");
        rest = &after[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => break,
        }
    }
    let value = rest.strip_prefix("} ").expect("a value").parse().expect("a number");
    (name.to_string(), labels, value)
}

/// Checks the form of the text and returns the samples of each family.
fn parse(text: &str) -> BTreeMap<String, Vec<Sample>> {
    assert!(text.ends_with('\n') && !text.contains("# EOF"));
    let mut families: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    let (mut name, mut kind, mut helped) = (String::new(), String::new(), false);
    let mut series = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (of, is) = rest.split_once(' ').expect("a type");
            (name, kind, helped) = (of.to_string(), is.to_string(), false);
            assert!(families.insert(name.clone(), Vec::new()).is_none(), "family {name} twice");
        } else if let Some(rest) = line.strip_prefix("# UNIT ") {
            let (of, unit) = rest.split_once(' ').expect("a unit");
            assert!(of == name && name.ends_with(&format!("_{unit}")), "{line}");
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            let (of, help) = rest.split_once(' ').expect("a help text");
            assert!(of == name && help.ends_with('.') && !help.contains(['\\', '"']), "{line}");
            helped = true;
        } else {
            let sample = sample(line);
            let suffixes: &[&str] = match kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "info" => &["_info"],
                "histogram" => &["_bucket", "_count", "_sum"],
                other => panic!("type {other}"),
            };
            assert!(helped && suffixes.iter().any(|suffix| sample.0 == format!("{name}{suffix}")), "{line}");
            assert!(series.insert((sample.0.clone(), sample.1.clone())), "series twice: {line}");
            families.get_mut(&name).expect("a family").push(sample);
        }
    }
    families
}

/// Checks the buckets of one histogram with the labels `of`, and returns its count and sum.
fn check_histogram(samples: &[Sample], of: &BTreeMap<String, String>) -> (f64, f64) {
    let (mut bound, mut cumulative, mut count, mut sum) = (f64::NEG_INFINITY, 0.0, None, None);
    for (name, labels, value) in samples {
        let mut labels = labels.clone();
        let le = labels.remove("le");
        if labels != *of {
            continue;
        }
        match le {
            Some(le) => {
                assert!(le == "+Inf" || le.contains('.'), "{le} is not canonical");
                let next: f64 = le.parse().unwrap();
                assert!(next > bound && *value >= cumulative, "{name} {le}");
                (bound, cumulative) = (next, *value);
            }
            None if name.ends_with("_count") => count = Some(*value),
            None => sum = Some(*value),
        }
    }
    assert!(bound.is_infinite() && count == Some(cumulative));
    (cumulative, sum.unwrap())
}

fn source(labels: &str, histograms: Vec<HistogramReading>) -> Source {
    let metrics =
        Metrics { running: 3, blocks_total: 8, blocks_free: 6, step_ns_max: 1_500_000_000, ..Metrics::default() };
    Source { labels: labels.to_string(), metrics, histograms, products: "amx" }
}

fn readings(count: u64) -> Vec<HistogramReading> {
    let buckets = vec![(0.25, 1), (1.0, count), (f64::INFINITY, count)];
    vec![HistogramReading { name: "step_seconds", help: "Duration of a step.", buckets, sum: 1.75 }]
}

#[test]
fn the_text_is_a_fragment_of_openmetrics() {
    let name = escaped("a \"model\"\\\n");
    let cache = format!("model_name=\"{name}\",cache=\"0\"");
    let engines: Vec<_> =
        (0..2).map(|i| source(&format!("{cache},engine=\"{i}\",role=\"mixed\""), readings(2 + i))).collect();
    let families = parse(&write(&engines, &[source(&cache, Vec::new())]));
    // A cache's gauges are there once, however many engines it has, so that sums are right.
    let blocks = &families["cleave_kv_blocks"];
    assert_eq!(blocks.len(), 1);
    assert_eq!(blocks[0].1["model_name"], "a \"model\"\\\n");
    assert_eq!((blocks[0].1.get("engine"), blocks[0].2), (None, 8.0));
    assert_eq!(families["cleave_kv_cache_usage_perc"][0].2, 0.25);
    assert_eq!(families["cleave_cache"][0].1["products"], "amx");
    assert_eq!(families["cleave_num_requests_running"].len(), 2);
    assert_eq!(families["cleave_step_max_seconds"][1].2, 1.5);
    let steps = &families["cleave_step_seconds"];
    let labels = &families["cleave_num_requests_running"][1].1;
    assert_eq!(check_histogram(steps, labels), (3.0, 1.75));
}

#[test]
fn without_engines_there_is_no_sample_but_the_version() {
    let families = parse(&write(&[], &[]));
    let filled: Vec<_> = families.iter().filter(|(_, samples)| !samples.is_empty()).map(|(name, _)| name).collect();
    assert_eq!(filled, ["cleave_build"]);
}

/// The table of docs/metrics.md. `CLEAVE_BLESS=1` writes it anew.
#[test]
fn the_document_lists_every_family() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let mut table = String::from("| family | type | labels | meaning |\n| --- | --- | --- | --- |\n");
    let mut row = |name: &str, kind: &str, of_cache: bool, help: &str| {
        let labels = if of_cache { "cache" } else { "engine" };
        let total = if kind == "counter" { "_total" } else { "" };
        let _ = writeln!(table, "| `cleave_{name}{total}` | {kind} | {labels} | {help} |");
    };
    for reading in Engine::histogram_list() {
        row(reading.name, "histogram", false, reading.help);
    }
    for family in FAMILIES {
        let kind = if family.kind == Kind::Counter { "counter" } else { "gauge" };
        row(family.name, kind, family.of_cache, family.help);
    }
    const BEGIN: &str =
        "<!-- from src/engine/metrics.rs and histogram.rs: CLEAVE_BLESS=1 cargo test --lib openmetrics -->\n";
    const END: &str = "<!-- end -->\n";
    let (before, rest) = document.split_once(BEGIN).expect("the begin of the table");
    let (found, after) = rest.split_once(END).expect("the end of the table");
    if std::env::var_os("CLEAVE_BLESS").is_some() {
        return std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
    }
    assert_eq!(found, table, "docs/metrics.md: run CLEAVE_BLESS=1 cargo test --lib openmetrics");
}
