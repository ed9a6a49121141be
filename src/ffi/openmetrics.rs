//! The metrics of all engines and caches of the process as OpenMetrics text, without the final `# EOF`.
//!
//! Names and labels follow vLLM's where the meaning is the same. docs/metrics.md lists all families.

use super::engine::EngineObject;
use super::registry;
use crate::engine::{Engine, FAMILIES, HistogramReading, Kind, Metrics, ModelCache, Role, unit};
use std::fmt::Write;

/// One engine or cache: its labels, and a reading of everything that it counts.
struct Source {
    labels: String,
    metrics: Metrics,
    histograms: Vec<HistogramReading>,
    /// Library that multiplies matrices for a cache: see [`ModelCache::product_path`].
    products: &'static str,
}

/// Reads every engine and every cache, also caches that only an engine keeps alive, and writes the text.
pub(super) fn text() -> String {
    let mut engines = registry::all::<EngineObject>();
    engines.sort_by_key(|engine| engine.number);
    let mut caches = registry::all::<ModelCache>();
    caches.extend(engines.iter().map(|engine| engine.engine.cache().clone()));
    caches.sort_by_key(|cache| cache.number());
    caches.dedup_by_key(|cache| cache.number());
    let engines: Vec<_> = engines.iter().map(|engine| engine_source(engine)).collect();
    let caches: Vec<_> = caches.iter().map(|cache| cache_source(cache)).collect();
    write(&engines, &caches)
}

fn cache_labels(cache: &ModelCache) -> String {
    format!("model_name=\"{}\",cache=\"{}\"", escaped(&cache.model().name()), cache.number())
}

fn cache_source(cache: &ModelCache) -> Source {
    Source {
        labels: cache_labels(cache),
        metrics: cache.metrics(),
        histograms: Vec::new(),
        products: cache.product_path(),
    }
}

fn engine_source(object: &EngineObject) -> Source {
    let metrics = object.engine.metrics();
    let role = match Role::from_code(metrics.role) {
        Some(Role::Prefill) => "prefill",
        Some(Role::Decode) => "decode",
        Some(Role::Mixed) | None => "mixed",
    };
    let cache = cache_labels(object.engine.cache());
    let labels = format!("{cache},engine=\"{}\",role=\"{role}\"", object.number);
    Source { labels, metrics, histograms: object.engine.histograms(), products: object.engine.cache().product_path() }
}

/// A label's value: backslash, quote and newline are escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

// Writing to a String cannot fail.
fn write(engines: &[Source], caches: &[Source]) -> String {
    let mut text = String::new();
    head(&mut text, "build", "info", "Version of the library.");
    let _ = writeln!(text, "cleave_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    head(&mut text, "cache", "info", "Caches, and what multiplies matrices on their devices.");
    for Source { labels, products, .. } in caches {
        let _ = writeln!(text, "cleave_cache_info{{{labels},products=\"{}\"}} 1", escaped(products));
    }
    for family in FAMILIES {
        let (kind, suffix) = match family.kind {
            Kind::Counter => ("counter", "_total"),
            Kind::Gauge => ("gauge", ""),
        };
        head(&mut text, family.name, kind, family.help);
        for source in if family.of_cache { caches } else { engines } {
            let value = (family.value)(&source.metrics);
            let _ = writeln!(text, "cleave_{}{suffix}{{{}}} {value}", family.name, source.labels);
        }
    }
    for family in Engine::histogram_list() {
        head(&mut text, family.name, "histogram", family.help);
        for engine in engines {
            let readings = engine.histograms.iter().filter(|reading| reading.name == family.name);
            readings.for_each(|reading| histogram(&mut text, &engine.labels, reading));
        }
    }
    text
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# TYPE cleave_{name} {kind}");
    if let Some(unit) = unit(name) {
        let _ = writeln!(text, "# UNIT cleave_{name} {unit}");
    }
    let _ = writeln!(text, "# HELP cleave_{name} {help}");
}

fn histogram(text: &mut String, labels: &str, reading: &HistogramReading) {
    let name = reading.name;
    for (bound, count) in &reading.buckets {
        // The canonical forms are "0.25", "1.0" and "+Inf".
        let bound = if bound.is_infinite() { "+Inf".to_string() } else { format!("{bound:?}") };
        let _ = writeln!(text, "cleave_{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
    }
    let total = reading.buckets.last().map_or(0, |bucket| bucket.1);
    let _ = writeln!(text, "cleave_{name}_count{{{labels}}} {total}");
    let _ = writeln!(text, "cleave_{name}_sum{{{labels}}} {}", reading.sum);
}

#[cfg(test)]
mod tests;
