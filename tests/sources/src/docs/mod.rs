//! The documents are held against the sources: links and paths lead somewhere, names exist, quoted error texts are real.

mod comments;
mod figures;
mod links;
mod names;
mod page;
mod texts;

use std::path::{Path, PathBuf};

/// Directories of the repository that hold build results or other people's files.
const NOT_OURS: &[&str] = &["target", ".git", "node_modules", "__pycache__", "corpus", "artifacts"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every file and directory of the repository, relative to its root.
fn tree() -> Vec<String> {
    fn walk(directory: &Path, out: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if NOT_OURS.contains(&name.as_str()) || path == root().join("build") {
                continue;
            }
            out.push(path.strip_prefix(root()).unwrap().to_string_lossy().into_owned());
            if path.is_dir() {
                walk(&path, out);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root(), &mut paths);
    paths.sort();
    paths
}

/// The files of `tree` below one of `directories` whose names end in one of `extensions`.
fn files_in(directories: &[&str], extensions: &[&str]) -> Vec<String> {
    let below =
        |path: &String| directories.iter().any(|d| d.is_empty() || path.starts_with(&format!("{d}/")) || path == d);
    let wanted = |path: &String| extensions.iter().any(|e| path.rsplit_once('.').is_some_and(|(_, found)| found == *e));
    tree().into_iter().filter(|path| below(path) && wanted(path) && root().join(path).is_file()).collect()
}

fn report(complaints: &[String], rule: &str) {
    assert!(complaints.is_empty(), "{rule}:\n{}", complaints.join("\n"));
}
