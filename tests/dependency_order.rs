//! The order of dependencies that ARCHITECTURE.md draws, held against the sources: which module may name which.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Module → the modules it may use. `error`, `log`, `panics`, `failpoint`, `sys` and `sync` are the floor under all.
const MAY_USE: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("tensor", &[]),
    ("sequence", &[]),
    ("sys", &[]),
    ("sync", &[]),
    ("log", &[]),
    ("panics", &[]),
    ("failpoint", &[]),
    ("backend", &["tensor"]),
    ("sampling", &["sequence"]),
    ("scheduler", &[]),
    ("kv", &["backend", "tensor", "sequence"]),
    ("transport", &["kv", "backend", "tensor", "sequence"]),
    ("model", &["backend", "tensor"]),
    ("fuzzing", &["transport", "kv", "model", "backend", "tensor", "sequence"]),
    ("engine", &["model", "transport", "kv", "scheduler", "sampling", "backend", "tensor", "sequence"]),
    ("ffi", &["engine", "model", "transport", "kv", "sampling", "backend", "tensor", "sequence"]),
];
const FLOOR: &[&str] = &["error", "sys", "sync", "log", "panics", "failpoint"];

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Names that follow `crate::` in code (comments and doc links left out), `use crate::{a, b::c}` included.
fn named_modules(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for line in text.lines().filter(|l| !l.trim_start().starts_with("//")) {
        for (at, _) in line.match_indices("crate::") {
            let rest = &line[at + "crate::".len()..];
            if let Some(group) = rest.strip_prefix('{') {
                let mut depth = 0;
                let mut word = String::new();
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => names.push(std::mem::take(&mut word)),
                        _ if depth == 0 => word.push(c),
                        _ => {}
                    }
                }
                names.push(word);
            } else {
                names.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            }
        }
    }
    names.iter().map(|n| n.trim().split("::").next().unwrap_or_default().to_string()).collect()
}

#[test]
fn modules_depend_one_way() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let may_use: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut seen = Vec::new();
    let mut wrong = Vec::new();
    for file in &files {
        let relative = file.strip_prefix(&src).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        // Tests may look upwards: they need something to test with.
        let is_test = relative.components().any(|c| c.as_os_str() == "tests" || c.as_os_str() == "tests.rs");
        if module == "lib" || is_test {
            continue;
        }
        let Some(allowed) = may_use.get(module) else {
            wrong.push(format!("src/{}: module {module} has no place in the order yet", relative.display()));
            continue;
        };
        seen.push(module.to_string());
        for used in named_modules(&std::fs::read_to_string(file).unwrap()) {
            let known = may_use.contains_key(used.as_str());
            let fine = used == module || FLOOR.contains(&used.as_str()) || allowed.contains(&used.as_str());
            if known && !fine {
                wrong.push(format!("src/{}: {module} may not use {used}", relative.display()));
            }
        }
    }
    for (module, _) in MAY_USE {
        assert!(seen.iter().any(|s| s == module), "the order names {module}, which has no source");
    }
    assert!(wrong.is_empty(), "against the order of dependencies:\n{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_every_form_of_use() {
    let text = "use crate::{kv::Cache, model};\n// crate::ffi\nlet x = crate::engine::Role::Mixed;";
    assert_eq!(named_modules(text), ["kv", "model", "engine"]);
}
