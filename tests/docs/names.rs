//! Names of the C API, of metrics and of environment variables in the documents.

use super::page::pages;
use std::collections::BTreeSet;

/// Documents about earlier versions, which name what is gone.
const HISTORY: &[&str] = &["CHANGELOG.md", "docs/api-changes.md"];

/// The names in `text` that begin with `prefix` and continue with characters that `part` accepts.
fn names(text: &str, prefix: &str, part: fn(char) -> bool) -> BTreeSet<String> {
    let starts =
        text.match_indices(prefix).filter(|(at, _)| !text[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
    starts
        .map(|(at, _)| text[at..].chars().take_while(|c| part(*c)).collect::<String>())
        .filter(|name| name.len() > prefix.len() && !name.ends_with('_'))
        .collect()
}

fn lower(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

fn upper(c: char) -> bool {
    c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'
}

/// Every text in which a constant, a metric or an environment variable may be defined.
fn sources() -> String {
    let mut files = super::files_in(
        &[
            "include",
            "src",
            "tools",
            "cmake",
            "kernels",
            "simulator",
            "tests",
            "benches",
            "examples",
            "bindings",
            "fuzz",
            "ctest",
        ],
        &["h", "hpp", "rs", "sh", "py", "cmake", "txt", "go", "cpp", "c", "cu", "cuh", "in"],
    );
    files.extend(["Makefile", "CMakeLists.txt", "build.rs"].map(String::from));
    files.iter().map(|file| super::read(file)).collect::<Vec<_>>().join("\n")
}

/// Whether the sources have a metric family of that name, which is written without `cleave_` and the suffix of its samples.
fn is_metric(name: &str, sources: &str) -> bool {
    let name = name.trim_start_matches("cleave_");
    let suffixes = ["", "_total", "_bucket", "_sum", "_count"];
    suffixes
        .iter()
        .filter_map(|suffix| name.strip_suffix(suffix))
        .any(|family| sources.contains(&format!("\"{family}\"")))
}

#[test]
fn names_in_the_documents_exist() {
    let build =
        ["CMakeLists.txt", "Makefile", "ctest/CMakeLists.txt", "examples/CMakeLists.txt"].map(super::read).join("\n");
    let known: BTreeSet<String> =
        [super::read("include/cleave/cleave.h"), build].iter().flat_map(|text| names(text, "cleave_", lower)).collect();
    let sources = sources();
    let constants = names(&sources, "CLEAVE_", upper);
    let mut complaints = Vec::new();
    for page in pages().iter().filter(|page| !HISTORY.contains(&page.path.as_str())) {
        for name in names(&page.text, "cleave_", lower)
            .iter()
            .filter(|name| !known.contains(*name) && !is_metric(name, &sources))
        {
            complaints.push(format!("{}: {name} is neither in the header nor a metric", page.path));
        }
        for name in names(&page.text, "CLEAVE_", upper).difference(&constants) {
            complaints.push(format!("{}: {name} is nowhere in the sources", page.path));
        }
    }
    super::report(&complaints, "names in the documents have to exist");
}

#[test]
fn functions_in_the_readme_are_functions() {
    let header = super::read("include/cleave/cleave.h");
    for name in names(&super::read("README.md"), "cleave_", lower) {
        let is_type = name.ends_with("_t");
        assert!(
            header.contains(&format!("{name}{}", if is_type { ";" } else { "(" })),
            "README.md: {name} is not in the header"
        );
    }
}
