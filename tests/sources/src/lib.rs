//! Tests that read the sources instead of running them. Here: the order of dependencies that ARCHITECTURE.md draws, which says
//! which module may name which. In `docs`: what documents say about the sources. In
//! `header`: cleave.h, which is generated from src/ffi.
#![cfg(test)]

mod docs;
mod files;
mod header;
mod paths;

use files::{Module, Sources};
use std::collections::BTreeMap;

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

fn name(module: &Module) -> String {
    module.join("::")
}

#[test]
fn modules_depend_one_way() {
    let may_use: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let sources = Sources::read();
    let mut wrong = Vec::new();
    for module in sources.modules().filter(|module| !module.is_empty()) {
        let top = module[0].as_str();
        let Some(allowed) = may_use.get(top) else {
            wrong.push(format!("{}: module {top} has no place in the order yet", name(module)));
            continue;
        };
        for used in sources.uses(module) {
            let used = used[0].as_str();
            if used != top && !FLOOR.contains(&used) && !allowed.contains(&used) {
                wrong.push(format!("{}: {top} may not use {used}", name(module)));
            }
        }
    }
    for (top, _) in MAY_USE {
        assert!(sources.modules().any(|module| module.first().is_some_and(|m| m == top)), "{top} has no source");
    }
    assert!(wrong.is_empty(), "against the order of dependencies:\n{}", wrong.join("\n"));
}

#[test]
fn files_of_a_module_do_not_use_each_other_in_circles() {
    let circles = Sources::read().circles();
    let circles: Vec<String> =
        circles.iter().map(|circle| circle.iter().map(name).collect::<Vec<_>>().join(" <-> ")).collect();
    assert!(circles.is_empty(), "circles:\n{}", circles.join("\n"));
}

fn sources(files: &[(&str, &str)]) -> Sources {
    let module = |name: &str| name.split("::").filter(|part| !part.is_empty()).map(str::to_string).collect();
    Sources::new(files.iter().map(|(name, text)| (module(name), text.to_string())).collect())
}

#[test]
fn the_check_sees_every_form_of_use() {
    let sources = sources(&[
        ("", ""),
        ("kv", "mod pool;\npub use pool::Pool;"),
        ("kv::pool", ""),
        ("model", ""),
        ("engine", "use crate::{kv::{Pool,\n  pool}, model as m};\n// crate::ffi\nfn f() {\n    use super::log::x;\n}"),
        ("ffi", "fn g() { crate::engine::Role::Mixed; }"),
        ("log", ""),
    ]);
    let uses = |module: &str| {
        sources.uses(&module.split("::").map(str::to_string).collect()).iter().map(name).collect::<Vec<_>>()
    };
    assert_eq!(uses("engine"), ["kv::pool", "log", "model"]);
    assert_eq!(uses("ffi"), ["engine"]);
    assert!(uses("kv").is_empty(), "passing a name on is no use");
}

#[test]
fn the_check_sees_circles() {
    let sources = sources(&[
        ("kv", "mod a; mod b; mod c;\npub use a::A;"),
        ("kv::a", "use super::b::B;"),
        ("kv::b", "use crate::kv::c::{C, D};"),
        ("kv::c", "use super::A;"),
        ("kv::d", "use super::a;"),
    ]);
    let circles: Vec<Vec<String>> = sources.circles().iter().map(|c| c.iter().map(name).collect()).collect();
    assert_eq!(circles, [["kv::a", "kv::b", "kv::c"]]);
}

/// Identifiers of a line of code, without its strings and comments.
fn identifiers(line: &str) -> Vec<String> {
    let mut code = String::new();
    let mut chars = line.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => drop(chars.next()),
            '"' => quoted = !quoted,
            '/' if !quoted && chars.peek() == Some(&'/') => break,
            _ if quoted => {}
            c if c.is_alphanumeric() || c == '_' => code.push(c),
            _ => code.push(' '),
        }
    }
    code.split_whitespace().map(str::to_string).collect()
}

/// A new kind of device is a folder in src/backend and one match arm there: nothing else may know which kinds there are.
#[test]
fn only_the_backend_names_a_kind_of_device() {
    // The C API's name of a transport.
    const ALLOWED: &[&str] = &["CLEAVE_TRANSPORT_CUDA"];
    let sources = Sources::read();
    let kinds = |module: &Module| -> Vec<String> {
        let names = sources.text(module).lines().flat_map(identifiers);
        let kinds = names.filter(|name| name.to_lowercase().contains("cuda") && !ALLOWED.contains(&name.as_str()));
        kinds.map(|kind| format!("{}: {kind}", name(module))).collect()
    };
    let (backend, others): (Vec<_>, Vec<_>) =
        sources.modules().partition(|module| module.first().is_some_and(|top| top == "backend"));
    assert!(backend.iter().any(|module| !kinds(module).is_empty()), "the check finds nothing at all");
    let wrong: Vec<String> = others.into_iter().flat_map(kinds).collect();
    assert!(wrong.is_empty(), "a kind of device is named outside of src/backend:\n{}", wrong.join("\n"));
}

#[test]
fn names_in_strings_and_comments_do_not_count() {
    assert_eq!(identifiers(r#"let a = cuda::open("a \" cuda"); // cuda"#), ["let", "a", "cuda", "open"]);
}
