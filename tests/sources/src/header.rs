//! The committed header is what src/ffi says. `CLEAVE_BLESS=1 cargo test -p source-checks header` (`make header`) rewrites it.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The section files in the order of the header, which is generated from exactly these.
const HEADER_SECTIONS: &[&str] = &[
    "version",
    "error",
    "log",
    "device",
    "handle",
    "model",
    "text",
    "cache",
    "queue",
    "engine",
    "request",
    "event",
    "kv",
    "peer",
    "cache_event",
    "insight",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The `//!` lines of a section file: its heading and what stands below it.
fn section_comment(source: &str) -> String {
    let lines: Vec<&str> = source.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim).collect();
    let (heading, rest) = lines.split_first().expect("a section file begins with //! and its heading");
    let mut comment = format!("\n\n/* ---- {heading} ----");
    for line in rest.iter().skip_while(|line| line.is_empty()) {
        let _ = write!(comment, "\n *{}{line}", if line.is_empty() { "" } else { " " });
    }
    comment.push_str(" */\n");
    comment
}

/// cbindgen writes `-1` and `(1 << 0)`; as macros in expressions of a host these want to be `(-1)` and `(1u << 0)`.
fn tidy_define(line: &str) -> String {
    let Some((name, value)) = line.strip_prefix("#define ").and_then(|rest| rest.split_once(' ')) else {
        return line.to_string();
    };
    let value = value.trim();
    if value.starts_with('-') {
        format!("#define {name} ({value})")
    } else if value.starts_with("(1 <<") {
        format!("#define {name} (1u{}", &value[2..])
    } else {
        line.to_string()
    }
}

/// `/**`, ` * text`, ` */` on three lines become one.
fn one_line_comments(header: &str) -> String {
    let lines: Vec<&str> = header.lines().collect();
    let mut result = String::new();
    let mut i = 0;
    while i < lines.len() {
        let indent = &lines[i][..lines[i].len() - lines[i].trim_start().len()];
        match lines.get(i..i + 3) {
            Some([open, text, close]) if open.trim() == "/**" && close.trim() == "*/" => {
                let _ = writeln!(result, "{indent}/** {} */", text.trim().trim_start_matches('*').trim());
                i += 3;
            }
            _ => {
                let _ = writeln!(result, "{}", lines[i]);
                i += 1;
            }
        }
    }
    result
}

fn declared_types(source: &str) -> Vec<String> {
    let declarations = source.lines().filter_map(|l| l.strip_prefix("pub struct ").or(l.strip_prefix("pub type ")));
    declarations.filter_map(|rest| Some(rest.split([' ', '<']).next()?.to_string())).collect()
}

fn generate() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).expect("cbindgen.toml");
    let mut header = read("src/ffi/header/prologue.h");
    for section in HEADER_SECTIONS {
        let file = root().join("src/ffi").join(section).with_extension("rs");
        header.push_str(&section_comment(&read(&file)));
        let mut config = config.clone();
        // Also the types that no function of the section itself uses.
        config.export.include = declared_types(&read(&file));
        let bindings = cbindgen::Builder::new().with_src(&file).with_config(config).generate();
        let mut text = Vec::new();
        bindings.unwrap_or_else(|e| panic!("{section}: {e}")).write(&mut text);
        let text = String::from_utf8(text).expect("a header in UTF-8");
        for line in text.trim_end().lines() {
            header.push_str(tidy_define(line).trim_end());
            header.push('\n');
        }
    }
    header.push_str(&read("src/ffi/header/epilogue.h"));
    header = one_line_comments(&header);
    while header.contains("\n\n\n\n") {
        header = header.replace("\n\n\n\n", "\n\n\n");
    }
    header
}

#[test]
fn the_committed_header_is_current() {
    let path = root().join("include/cleave/cleave.h");
    let generated = generate();
    if std::env::var_os("CLEAVE_BLESS").is_some() {
        std::fs::write(&path, generated).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    if let Some((i, (a, b))) = committed.lines().zip(generated.lines()).enumerate().find(|(_, (a, b))| a != b) {
        panic!(
            "include/cleave/cleave.h is not what src/ffi says; run `make header`\nline {}: {a}\nshould be: {b}",
            i + 1
        );
    }
    assert_eq!(committed.len(), generated.len(), "include/cleave/cleave.h is not what src/ffi says; run `make header`");
}

/// Every exported function is declared in the header, and every one has a comment.
#[test]
fn every_function_is_declared_and_documented() {
    let header = generate();
    let mut count = 0;
    for section in HEADER_SECTIONS {
        let source = read(format!("src/ffi/{section}.rs"));
        for name in source.split("extern \"C\" fn ").skip(1).filter_map(|rest| rest.split_once('(')).map(|r| r.0) {
            if !name.starts_with("cleave_") {
                continue;
            }
            count += 1;
            let at = header.find(&format!("{name}(")).unwrap_or_else(|| panic!("{name} is not in the header"));
            let line = header[..at].rfind('\n').unwrap_or(0);
            assert!(header[..line].ends_with(" */"), "{name} has no comment");
        }
    }
    assert!(count >= 40, "{count}");
}

/// A function that returns a status takes `err` last. Polling is called in a loop and does without.
#[test]
fn every_function_that_can_fail_takes_err_last() {
    let header = generate();
    let mut count = 0;
    for declaration in header.split("cleave_status_t cleave_").skip(1) {
        let (name, rest) = declaration.split_once('(').expect("a parameter list");
        let parameters = rest.split_once(");").expect("the end of a declaration").0;
        let last = parameters.rsplit(',').next().unwrap_or_default().trim();
        assert!(last == "cleave_error_t *err" || name == "queue_poll", "cleave_{name}: the last parameter is {last}");
        count += 1;
    }
    assert!(count >= 35, "{count}");
}

/// ctest/handles.c calls every function that takes an object, with handles that stand for nothing.
#[test]
fn every_function_that_takes_an_object_is_tried_with_bad_handles() {
    let (header, tests) = (generate(), read("ctest/handles.c"));
    let objects = ["model", "cache", "queue", "engine", "detokenizer"].map(|object| format!("cleave_{object}_t *"));
    for declaration in header.split("cleave_status_t cleave_").skip(1) {
        let (name, parameters) = declaration.split_once('(').expect("a parameter list");
        let first = parameters.trim_start_matches("const ");
        if objects.iter().any(|object| first.starts_with(object)) {
            assert!(tests.contains(&format!(", {name}, ")), "cleave_{name} is not in ctest/handles.c");
        }
    }
}

/// The fields of a struct of the header, without those that hosts do not set or read.
fn fields(header: &str, name: &str) -> Vec<String> {
    let (_, rest) = header.split_once(&format!("typedef struct {name} {{")).unwrap_or_else(|| panic!("no {name}"));
    let body = rest.split_once(&format!("}} {name};")).expect("the end of a struct").0;
    let lines = body.lines().map(str::trim).filter(|line| line.ends_with(';') && !line.starts_with('*'));
    let names = lines.filter_map(|line| line.trim_end_matches(';').split('[').next()?.split(' ').next_back());
    names.filter(|name| !["struct_size", "reserved"].contains(name)).map(str::to_string).collect()
}

/// The sources below `directory` with one of the `extensions`, as one text.
fn sources(directory: &str, extensions: &[&str]) -> String {
    let entries = std::fs::read_dir(root().join(directory)).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.extension().is_some_and(|e| extensions.iter().any(|want| e == *want)));
    files.map(read).collect()
}

/// Every field of a struct is set or read by the C++ wrapper and by the Go package.
#[test]
fn every_field_is_known_to_the_bindings() {
    let header = generate();
    let (capi, go) = (sources("bindings/go/internal/capi", &["go", "h"]), sources("bindings/go", &["go"]));
    let cpp = sources("bindings/cpp/cleave", &["hpp"]);
    let mut missing = Vec::new();
    let mut check = |text: &str, of: &str, field: &str, wanted: String| {
        let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        if !text.match_indices(&wanted).any(|(at, _)| ends(&text[at + wanted.len()..])) {
            missing.push(format!("{of}.{field}: no `{wanted}`"));
        }
    };
    // Structs that the C++ wrapper fills from its own; the others it derives from.
    for (name, variable) in
        [("cleave_request_desc_t", "c"), ("cleave_engine_config_t", "config"), ("cleave_cache_config_t", "config")]
    {
        for field in fields(&header, name) {
            check(&cpp, name, &field, format!("{variable}.{field}"));
        }
    }
    for name in [
        "cleave_request_desc_t",
        "cleave_engine_config_t",
        "cleave_cache_config_t",
        "cleave_kv_info_t",
        "cleave_model_info_t",
        "cleave_device_info_t",
        "cleave_pair_report_t",
        "cleave_audit_t",
    ] {
        for field in fields(&header, name) {
            // Go has no use for flags that are always 0, and gives a report's status as an error.
            let left_out = ["cleave_engine_config_t.flags", "cleave_model_info_t.flags", "cleave_pair_report_t.status"];
            if !left_out.contains(&format!("{name}.{field}").as_str()) {
                check(&capi, name, &field, format!("c.{field}"));
            }
        }
    }
    for field in fields(&header, "cleave_event_t") {
        check(&capi, "cleave_event_t", &field, format!("offsetof(cleave_event_t, {field}"));
    }
    for field in fields(&header, "cleave_cache_event_t") {
        check(&capi, "cleave_cache_event_t", &field, format!("offsetof(cleave_cache_event_t, {field}"));
    }
    for field in fields(&header, "cleave_cache_event_range_t") {
        check(&capi, "cleave_cache_event_range_t", &field, format!("c.{field}"));
    }
    for field in fields(&header, "cleave_engine_load_t") {
        check(&go, "cleave_engine_load_t", &field, format!("`c:\"{field}\"`"));
    }
    for field in fields(&header, "cleave_metrics_t") {
        check(&go, "cleave_metrics_t", &field, format!("`c:\"{field}\"`"));
        if field.ends_with("_ns") || field.contains("_ns_") {
            check(&cpp, "cleave_metrics_t", &field, format!("Time({field}"));
        }
    }
    for flag in header.lines().filter_map(|line| line.strip_prefix("#define CLEAVE_REQUEST_")?.split(' ').next()) {
        check(&capi, "flags", flag, format!("C.CLEAVE_REQUEST_{flag}"));
        check(&cpp, "flags", flag, format!("CLEAVE_REQUEST_{flag}"));
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// Every field of a request in the cgo package is set by the Go package above it, which the other test does not see.
#[test]
fn every_field_of_a_request_is_set_in_go() {
    let capi = read(root().join("bindings/go/internal/capi/request.go"));
    let go = read(root().join("bindings/go/request.go"));
    let fields = capi.split_once("type Request struct {\n").and_then(|(_, rest)| rest.split_once("\n}")).unwrap().0;
    let names: Vec<&str> = fields.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"MinP") && names.contains(&"LogitBias"), "{names:?}");
    let set = |name: &&str| go.contains(&format!("\t{name}:")) || go.contains(&format!("c.{name} = "));
    let missing: Vec<&str> = names.into_iter().filter(|name| !set(name)).collect();
    assert!(missing.is_empty(), "bindings/go/request.go does not set {missing:?} of capi.Request");
}

#[test]
fn the_header_compiles_as_c99_and_cpp17() {
    let include = root().join("include");
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("use.c");
    std::fs::write(
        &source,
        "#include <cleave/cleave.h>\n#include <cleave/cleave.h>\n\
         typedef char event_is_64_bytes[sizeof(cleave_event_t) == 64 ? 1 : -1];\n\
         typedef char error_is_256_bytes[sizeof(cleave_error_t) == 256 ? 1 : -1];\n\
         int main(void) { return CLEAVE_REQUEST_KEEP_KV == 1u && CLEAVE_ERR_INTERNAL - 1 == -17 ? 0 : 1; }\n",
    )
    .unwrap();
    let strict = ["-pedantic", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-fsyntax-only"];
    for (compiler, language) in [("cc", &["-std=c99", "-x", "c"]), ("c++", &["-std=c++17", "-x", "c++"])] {
        let out = Command::new(compiler).args(language).args(strict).arg("-I").arg(&include).arg(&source).output();
        let out = out.unwrap_or_else(|e| panic!("{compiler}: {e}"));
        assert!(out.status.success(), "{compiler}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

/// The troubleshooting document lists every status and reason by name and number.
#[test]
fn every_status_is_in_the_troubleshooting_document() {
    let (header, document) = (read("include/cleave/cleave.h"), read("docs/troubleshooting.md"));
    let defined = |prefix: &str| -> Vec<(String, String)> {
        let defines =
            header.lines().filter_map(|line| line.strip_prefix("#define ")?.strip_prefix(prefix)?.split_once(' '));
        defines.map(|(name, value)| (name.to_string(), value.trim_matches(['(', ')']).to_string())).collect()
    };
    let (statuses, reasons) = (defined("CLEAVE_ERR_"), defined("CLEAVE_PAIR_"));
    assert!(statuses.len() >= 17 && reasons.len() >= 13, "{statuses:?} {reasons:?}");
    for (name, value) in statuses {
        assert!(document.contains(&format!("### {name} ({value})\n")), "{name} ({value})");
    }
    for (name, _) in reasons {
        assert!(document.contains(&format!("`{name}`")), "{name}");
    }
}
