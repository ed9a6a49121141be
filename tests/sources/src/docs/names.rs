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

/// All code and scripts: where a constant, an environment variable or a metric may be defined.
fn sources() -> String {
    let extensions = ["h", "hpp", "rs", "sh", "py", "cmake", "txt", "go", "cpp", "c", "cu", "cuh", "in"];
    let mut files = super::files_in(&[""], &extensions);
    files.push("Makefile".into());
    files.iter().map(|file| super::read(file)).collect::<Vec<_>>().join("\n")
}

/// Names of functions, types, targets of the build, and metrics of the example servers.
fn known_names() -> BTreeSet<String> {
    let mut files =
        super::files_in(&["examples/go-server", "examples/cpp-server", "bindings/go"], &["go", "hpp", "cpp"]);
    files.extend(["include/cleave/cleave.h", "CMakeLists.txt", "examples/CMakeLists.txt"].map(String::from));
    files.iter().flat_map(|file| names(&super::read(file), "cleave_", lower)).collect()
}

/// The name itself, and the metric families of which it may be a sample.
fn families(name: &str) -> impl Iterator<Item = &str> {
    ["", "_total", "_info", "_bucket", "_sum", "_count"].into_iter().filter_map(|suffix| name.strip_suffix(suffix))
}

#[test]
fn names_in_the_documents_exist() {
    let (sources, known) = (sources(), known_names());
    let constants = names(&sources, "CLEAVE_", upper);
    // The library's sources write a metric family as a string, without the prefix.
    let is_family = |family: &str| sources.contains(&format!("\"{}\"", family.trim_start_matches("cleave_")));
    let exists = |name: &str| families(name).any(|family| known.contains(family) || is_family(family));
    let mut complaints = Vec::new();
    for page in pages().iter().filter(|page| !HISTORY.contains(&page.path.as_str())) {
        for name in names(&page.text, "cleave_", lower).iter().filter(|name| !exists(name)) {
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
