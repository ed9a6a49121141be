//! Writes launch shapes for Rust to `shapes.rs` in OUT_DIR: the integer constants of `include/*.cuh`, which stand next
//! to their kernels.
//!
//! Exports lines that begin in one of these forms. `EXPR` consists of integers, other such constants, `+ - * /`,
//! parentheses, comparisons and `?:`.
//!
//! - `constexpr int NAME = EXPR;` (or `uint32_t`) becomes `pub const NAME: u32`;
//! - `template <int D> constexpr int NAME = EXPR;` becomes `pub const fn name(D: u32) -> u32`;
//! - the lines of FOR_HEAD_SIZES become `HEAD_SIZES`.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

pub fn export() {
    let mut files: Vec<PathBuf> = fs::read_dir("include")
        .expect("the headers")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cuh"))
        .collect();
    files.sort();
    let texts: Vec<String> = files.iter().map(|file| fs::read_to_string(file).expect("a header")).collect();
    let mut constants = Vec::new();
    let mut functions = Vec::new();
    let mut head_sizes = Vec::new();
    for line in texts.iter().flat_map(|text| text.lines()) {
        if let Some((name, value)) =
            definition(line, "constexpr int ").or_else(|| definition(line, "constexpr uint32_t "))
        {
            constants.push((name, value));
        } else if let Some((name, value)) = definition(line, "template <int D> constexpr int ") {
            functions.push((name, value));
        } else if let Some(size) = line.trim().strip_prefix("ENTRY(__VA_ARGS__, ") {
            let size = size.split(')').next().unwrap_or_default();
            head_sizes.extend(size.parse::<u32>());
        }
    }
    let mut out = String::new();
    for (name, value) in &constants {
        let (name, value) = (name.to_uppercase(), rust(value, &constants));
        writeln!(out, "/// `{name}` of the headers, in lower case there.\npub const {name}: u32 = {value};").unwrap();
    }
    for (name, value) in &functions {
        let value = rust(value, &constants);
        writeln!(out, "/// `{name}` of the headers, for heads or rows of `D`.\npub const fn {name}(D: u32) -> u32 {{\n    {value}\n}}")
            .unwrap();
    }
    writeln!(out, "/// Head sizes that there are kernels for.\npub const HEAD_SIZES: &[u32] = &{head_sizes:?};")
        .unwrap();
    let to = Path::new(&std::env::var_os("OUT_DIR").expect("cargo sets it")).join("shapes.rs");
    fs::write(to, out).expect("write shapes.rs");
}

fn definition<'a>(line: &'a str, before: &str) -> Option<(&'a str, &'a str)> {
    let (definition, _) = line.strip_prefix(before)?.split_once(';')?;
    definition.split_once(" = ")
}

/// Translates the expression to Rust.
fn rust(value: &str, constants: &[(&str, &str)]) -> String {
    if let Some((condition, rest)) = value.split_once('?') {
        let (yes, no) = rest.split_once(':').expect("a whole conditional");
        let [condition, yes, no] = [condition, yes, no].map(|part| rust(part, constants));
        return format!("if {condition} {{ {yes} }} else {{ {no} }}");
    }
    let mut out = String::new();
    let mut word = String::new();
    for c in value.trim().replace("<D>", "(D)").chars().chain([' ']) {
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        match word.as_str() {
            number if number.starts_with(|c: char| c.is_ascii_digit()) => out.push_str(number.trim_end_matches('u')),
            name if constants.iter().any(|(known, _)| *known == name) => out.push_str(&name.to_uppercase()),
            other => out.push_str(other),
        }
        word.clear();
        out.push(c);
    }
    out.trim().to_string()
}
