//! The source files as a graph: which file names which.

use super::paths::{self, Path};
use std::collections::{BTreeMap, BTreeSet};

/// A module path below the crate, as `["kv", "pool"]`.
pub type Module = Vec<String>;

pub struct Sources {
    /// Module → text of its file.
    files: BTreeMap<Module, String>,
    /// (module, name) → the module that `pub use` takes the name from.
    passed_on: BTreeMap<(Module, String), Module>,
}

impl Sources {
    /// All files of `src` that are no tests.
    pub fn read() -> Sources {
        let src = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src");
        let mut files = BTreeMap::new();
        let mut dirs = vec![src.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let relative = path.strip_prefix(&src).unwrap().with_extension("");
                    let mut module: Module = relative.iter().map(|part| part.to_str().unwrap().to_string()).collect();
                    if module.last().is_some_and(|last| last == "mod" || last == "lib") {
                        module.pop();
                    }
                    // Tests may look upwards: they need something to test with.
                    if !module.iter().any(|part| part == "tests") {
                        let text = std::fs::read_to_string(&path).unwrap();
                        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_string();
                        files.insert(module, text);
                    }
                }
            }
        }
        Sources::new(files)
    }

    pub fn new(files: BTreeMap<Module, String>) -> Sources {
        let mut sources = Sources { files, passed_on: BTreeMap::new() };
        let mut passed_on = BTreeMap::new();
        for (module, text) in &sources.files {
            for path in paths::paths(text).iter().filter(|path| path.is_public) {
                if let (Some(to), Some(name)) = (sources.resolve(module, path), path.segments.last()) {
                    passed_on.insert((module.clone(), name.clone()), to);
                }
            }
        }
        sources.passed_on = passed_on;
        sources
    }

    pub fn modules(&self) -> impl Iterator<Item = &Module> {
        self.files.keys()
    }

    /// The text of a file.
    pub fn text(&self, module: &Module) -> &str {
        &self.files[module]
    }

    /// The files that a file uses, itself left out. What a `mod.rs` merely passes on is not a use.
    pub fn uses(&self, module: &Module) -> BTreeSet<Module> {
        let paths = paths::paths(&self.files[module]);
        let uses = paths.iter().filter(|path| !path.is_public).filter_map(|path| self.resolve(module, path));
        uses.filter(|to| to != module && !to.is_empty()).collect()
    }

    /// The file that a path in `from` leads to: the longest beginning of it that is one.
    fn resolve(&self, from: &Module, path: &Path) -> Option<Module> {
        let mut at: Module = Vec::new();
        let mut segments = path.segments.as_slice();
        match segments.first()?.as_str() {
            "crate" => segments = &segments[1..],
            "super" | "self" => {
                at = from.clone();
                while let Some(first @ ("super" | "self")) = segments.first().map(String::as_str) {
                    if first == "super" {
                        at.pop();
                    }
                    segments = &segments[1..];
                }
            }
            // A child, or another crate.
            first => {
                at = from.clone();
                at.push(first.to_string());
                if !self.files.contains_key(&at) {
                    return None;
                }
                segments = &segments[1..];
            }
        }
        for segment in segments {
            let mut next = at.clone();
            next.push(segment.clone());
            if self.files.contains_key(&next) {
                at = next;
            } else {
                return Some(self.passed_on.get(&(at.clone(), segment.clone())).cloned().unwrap_or(at));
            }
        }
        Some(at)
    }

    /// Sets of two or more files of one top-level module that use each other, directly or through others (Tarjan's
    /// strongly connected components would do; with some hundred files, reachability is plainer).
    pub fn circles(&self) -> Vec<Vec<Module>> {
        let uses: BTreeMap<&Module, BTreeSet<Module>> = self
            .modules()
            .map(|module| (module, self.uses(module).into_iter().filter(|to| to.first() == module.first()).collect()))
            .collect();
        let reach: BTreeMap<&Module, BTreeSet<Module>> = uses
            .keys()
            .map(|from| {
                let (mut seen, mut open) = (BTreeSet::new(), uses[*from].iter().cloned().collect::<Vec<_>>());
                while let Some(module) = open.pop() {
                    if seen.insert(module.clone()) {
                        open.extend(uses[&module].iter().cloned());
                    }
                }
                (*from, seen)
            })
            .collect();
        let mut circles = BTreeSet::new();
        for (module, reached) in &reach {
            if reached.contains(*module) {
                circles.insert(reached.iter().filter(|other| reach[*other].contains(*module)).cloned().collect());
            }
        }
        circles.into_iter().collect()
    }
}
